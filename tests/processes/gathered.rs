//! Workers that share no disk with their coordinator: it gathers their checkpoints, and gives them to whoever goes on
//! from one. The numbers and the files are those of workers that write to a disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use shoal_coordinator::{Following, News, Settings, follow, serve};
use shoal_plan::checkpoint::{CheckpointFile, CheckpointManifest, FILE_NAME};
use shoal_plan::job::{Gather, Job};
use shoal_plan::placement::make_plan;
use shoal_plan::plan::RunId;
use shoal_plan::standing::Standing;
use shoal_proto::Secret;

use crate::place::{PATIENCE_SECONDS, Place};
use crate::saved::STEADY;

const SAVED: &str = "    steps: 6
  checkpoint:
    every: 2
    keep: 9
    keep_best: false
";

const GATHERED: [&str; 2] = ["--set", "checkpoint.gather=coordinator"];

fn place(name: &str) -> Place {
    Place::new(name, &[STEADY, SAVED].concat())
}

/// Names, sizes and hashes of the files of each checkpoint, by step.
fn saved(run: &Path) -> BTreeMap<u64, Vec<CheckpointFile>> {
    let checkpoints = run.join("checkpoints");
    let steps = shoal_weights::steps(&checkpoints).unwrap().into_iter();
    steps.map(|step| (step, manifest(&checkpoints.join(format!("step-{step}"))).files)).collect()
}

fn manifest(checkpoint: &Path) -> CheckpointManifest {
    CheckpointManifest::from_text(&fs::read(checkpoint.join(FILE_NAME)).unwrap()).unwrap()
}

#[test]
fn what_the_coordinator_gathers_is_what_workers_write_to_a_disk() {
    let place = place("gathered");
    place.launch("disk", &[]).done();
    place.launch("gathered", &GATHERED).done();
    assert_eq!(place.losses("gathered"), place.losses("disk"), "bit-equal, as text");
    let (disk, gathered) = (saved(&place.run_dir("disk")), saved(&place.run_dir("gathered")));
    assert_eq!(disk.keys().collect::<Vec<_>>(), [&2, &4, &6]);
    assert_eq!(gathered, disk);
    let verified = place.shoal(&["checkpoints", "verify", "gathered"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);

    // On other numbers of workers and other grids; and from one way to the other.
    let steps = |n: u64| format!("training.steps={n}");
    let more = |run: &str, n: u64, args: &[&str]| {
        let steps = steps(n);
        let ended = place.launch(run, &[args, &["--set", &steps]].concat()).done();
        assert!(ended.err.contains("continuing after step"), "{}", ended.err);
    };
    more("gathered", 7, &[&GATHERED[..], &["--set", "workers.local=2"]].concat());
    more("gathered", 8, &[&GATHERED[..], &["--set", "workers.local=1"]].concat());
    more("gathered", 9, &[]);
    more("gathered", 10, &GATHERED);
    more("disk", 10, &[]);
    assert_eq!(place.losses("gathered"), place.losses("disk"), "bit-equal, as text");
    let grid = ["--set", "parallelism.stages=1", "--set", "parallelism.expert_shards=4"];
    more("gathered", 11, &[&GATHERED[..], &grid].concat());
    more("disk", 11, &grid);
    assert_eq!(place.losses("gathered"), place.losses("disk"), "bit-equal, as text");
    assert_eq!(saved(&place.run_dir("gathered"))[&11], saved(&place.run_dir("disk"))[&11]);
}

/// Worker processes with a directory of their own, killed when the test is over. One whose standard input ends, as
/// waiting for it would have it, goes at once.
struct Workers(Vec<(Child, ChildStdin)>);

impl Workers {
    fn start(n: u32, join: SocketAddr, secret: &Secret, run_dir: &Path) -> Self {
        let start = |id: u32| {
            let log = fs::File::create(run_dir.join(format!("worker-{id}.log"))).unwrap();
            let mut child = Command::new(env!("CARGO_BIN_EXE_shoal"))
                .args([
                    "host",
                    "--run",
                    &format!("r{n}"),
                    "--threads",
                    "1",
                    "--id",
                    &id.to_string(),
                ])
                .args(["--join", &join.to_string(), "--run-dir"])
                .arg(run_dir)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            writeln!(stdin, "{}", secret.to_hex()).unwrap();
            (child, stdin)
        };
        Self((0..n).map(start).collect())
    }

    /// All end well, told to by the coordinator.
    fn done(mut self) {
        for (worker, _) in &mut self.0 {
            assert!(worker.wait().unwrap().success());
        }
        self.0.clear();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (worker, _) in &mut self.0 {
            worker.kill().ok();
            worker.wait().ok();
        }
    }
}

/// Conducts a run in this process, with workers that are told another directory. Of another name for each number of
/// workers: it is another launch.
fn conduct(
    job: &Job,
    (run_dir, elsewhere): (&Path, &Path),
    (n_workers, resume_from): (u32, Option<Standing>),
) -> Vec<News> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let secret = Secret::random().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Settings {
        run: RunId(format!("r{n_workers}")),
        secret: secret.clone(),
        job: job.clone(),
        workers_wanted: n_workers,
        workers_first: n_workers,
        resume_from,
        run_dir: run_dir.to_path_buf(),
        lease_ms: Settings::LEASE_MS,
        join_deadline_ms: Settings::JOIN_DEADLINE_MS,
        make_plan: |job, workers, generation| {
            make_plan(job, workers, generation).map_err(|error| error.to_string())
        },
    };
    runtime.block_on(async {
        let running = serve(settings, port).unwrap();
        let mut following = follow(running.address, secret.clone());
        let workers = Workers::start(n_workers, running.address, &secret, elsewhere);
        let heard = until_the_end(&mut following).await;
        tokio::task::spawn_blocking(|| workers.done()).await.unwrap();
        heard
    })
}

async fn until_the_end(following: &mut Following) -> Vec<News> {
    let patience = Duration::from_secs(PATIENCE_SECONDS.into());
    let mut heard = Vec::new();
    loop {
        let next = tokio::time::timeout(patience, following.news.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("no end after {heard:?}")).unwrap();
        if let News::Finished { .. } = next {
            return heard;
        }
        let is_bad = matches!(next, News::Failed(_) | News::CheckpointFailed { .. });
        assert!(!is_bad, "{next:?} after {heard:?}");
        heard.push(next);
    }
}

/// A worker that looked for checkpoints on its own disk would find a file where their directory should be.
#[test]
fn workers_need_nothing_of_the_coordinators_disk_but_the_text() {
    let place = place("apart");
    place.launch("disk", &[]).done();
    let (run, elsewhere) = (place.run_dir("conducted"), place.run_dir("elsewhere"));
    for directory in [&run, &run.join("checkpoints"), &elsewhere, &elsewhere.join("targets")] {
        fs::create_dir(directory).unwrap();
    }
    std::os::unix::fs::symlink(place.run_dir("disk").join("data"), elsewhere.join("data")).unwrap();
    fs::write(elsewhere.join("checkpoints"), "no directory").unwrap();
    let recorded = fs::read_to_string(place.run_dir("disk").join("manifest.json")).unwrap();
    let mut job: Job = serde_json::from_str(&recorded).unwrap();
    job.checkpoint.gather = Gather::Coordinator;
    conduct(&job, (&run, &elsewhere), (4, None));
    assert_eq!(saved(&run), saved(&place.run_dir("disk")));

    // Two workers go on from what four have left.
    place.launch("disk", &["--set", "training.steps=10"]).done();
    job.training.steps = 10;
    job.workers.local = 2;
    let from = manifest(&run.join("checkpoints/step-6")).standing;
    conduct(&job, (&run, &elsewhere), (2, Some(from)));
    assert_eq!(saved(&run), saved(&place.run_dir("disk")));
    assert_eq!(fs::read_to_string(elsewhere.join("checkpoints")).unwrap(), "no directory");
}
