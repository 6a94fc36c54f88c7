//! A worker is killed while its files of a checkpoint are on their way to the coordinator, and so is the
//! coordinator. Nothing is lost, and nothing of half a file stays.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ledger::account;
use crate::place::{Launch, PATIENCE_SECONDS, Place, signal, wait};
use crate::{count, pid, says, survives};

/// Files are nearly always on their way.
const GATHERED: [&str; 4] =
    ["--set", "checkpoint.gather=coordinator", "--set", "checkpoint.every=1"];

/// Files that are on their way.
fn deposits(run: &Path) -> Vec<PathBuf> {
    let begun = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let files = begun.flat_map(|begun| fs::read_dir(begun.path()).into_iter().flatten().flatten());
    let paths = files.map(|file| file.path());
    paths.filter(|path| path.extension().is_some_and(|it| it == "deposit")).collect()
}

/// Stops the coordinator in the midst of a file that is not `of` cell 0, on whose worker all depends the most;
/// returns who conducts, and the cell whose file it is.
fn caught_in_the_midst(place: &Place, launch: &mut Launch) -> (u32, u32) {
    let run = place.run_dir("run");
    let mut found = None;
    wait(PATIENCE_SECONDS, "a file to be on its way", || {
        if let Some(status) = launch.child.try_wait().unwrap() {
            panic!("{status}: {}", fs::read_to_string(&launch.err).unwrap());
        }
        // Looking is faster than waiting.
        for _ in 0..200 {
            if deposits(&run).is_empty() {
                continue;
            }
            let conductor = place.coordinator("run").expect("it takes files");
            signal(conductor, "STOP");
            // Under way it was; whether it still is shows only now.
            if let Some(path) = deposits(&run).first() {
                found = Some((conductor, cell_of(path)));
                return true;
            }
            signal(conductor, "CONT");
        }
        false
    });
    found.unwrap()
}

/// Of `.master-cell-2.safetensors.deposit`.
fn cell_of(path: &Path) -> u32 {
    let name = path.file_name().unwrap().to_str().unwrap();
    let of_cell = name.split_once("-cell-").map(|(_, rest)| rest.split('.').next().unwrap());
    // The small files beside the model are cell 0's.
    of_cell.map_or(0, |cell| cell.parse().unwrap())
}

#[track_caller]
fn nothing_is_left_over(place: &Place) {
    let names = fs::read_dir(place.run_dir("run").join("checkpoints")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.starts_with('.')).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_worker_killed_while_its_checkpoint_is_on_its_way_costs_that_checkpoint_and_no_step() {
    let (place, ended) = survives("gathering-worker", &GATHERED, |place, launch| {
        let (conductor, cell) = caught_in_the_midst(place, launch);
        // Each worker hosts the cell of its number.
        signal(pid(place, cell), "KILL");
        signal(conductor, "CONT");
    });
    says(&ended, &["is lost: ", "going on with 3 workers"]);
    assert_eq!(count(&place, "evicted"), 1);
    nothing_is_left_over(&place);
}

#[test]
fn a_coordinator_killed_while_a_checkpoint_is_on_its_way_takes_it_again() {
    let (place, ended) = survives("gathering-conductor", &GATHERED, |place, launch| {
        let (conductor, _) = caught_in_the_midst(place, launch);
        signal(conductor, "KILL");
    });
    says(&ended, &["the coordinator is back, restart 1: 4 workers have caught up after "]);
    assert_eq!(account(&place.run_dir("run")).taken_back, 0);
    for (kind, times) in [("evicted", 0), ("recovering", 0), ("checkpoint_failed", 0)] {
        assert_eq!(count(&place, kind), times, "{kind}: {}", ended.err);
    }
    nothing_is_left_over(&place);
}
