//! Whether somebody else needs this machine: a program that runs, or a file that is there.
//!
//! A worker gives way when it has been seen twice in a row, half a second apart, and takes work again
//! when it has been gone for five seconds: a program that starts another and ends moves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Looks in a row that see it, until the worker gives way, and that do not, until that is over.
const SEEN: u32 = 2;
const GONE: u32 = 10;

/// What makes a worker give way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// A running program of this name.
    Program(String),
    /// A file that exists.
    File(PathBuf),
}

impl Sight {
    /// `game`, a program's name; `/run/mine`, a file, as everything with a slash in it.
    pub(crate) fn of(text: &str) -> Self {
        if text.contains('/') { Self::File(text.into()) } else { Self::Program(text.to_owned()) }
    }

    fn reason(&self) -> String {
        match self {
            Self::Program(name) => format!("{name} runs on its machine"),
            Self::File(path) => format!("{} is there", path.display()),
        }
    }
}

/// What is told of: the reason to give way, until that is over.
pub(crate) type Reason = Option<String>;

/// Looks for all of them for as long as anybody listens.
pub(crate) fn watch(sights: Vec<Sight>) -> watch::Receiver<Reason> {
    let (tell, told) = watch::channel(None);
    if !sights.is_empty() {
        thread::spawn(move || {
            let mut patience = Patience::default();
            while !tell.is_closed() {
                if let Some(news) = patience.looked(seen(&sights)) {
                    tell.send_replace(news);
                }
                thread::park_timeout(PAUSE);
            }
        });
    }
    told
}

/// The first of them that is there now.
fn seen(sights: &[Sight]) -> Option<String> {
    let asks = sights.iter().any(|sight| matches!(sight, Sight::Program(_)));
    let running = if asks { programs(Path::new("/proc")) } else { BTreeSet::new() };
    let is_there = |sight: &&Sight| match sight {
        Sight::Program(name) => running.contains(name),
        Sight::File(path) => path.exists(),
    };
    sights.iter().find(is_there).map(Sight::reason)
}

/// The names of all programs that run. The kernel's own names are cut to 15 letters, so that a program is
/// also known by the first word of its command line.
fn programs(proc: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(proc) else { return listed_by_ps() };
    let mut names = BTreeSet::new();
    for entry in entries.flatten() {
        let process = entry.path();
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if !is_process {
            continue;
        }
        // One that has ended meanwhile has neither.
        if let Ok(name) = fs::read_to_string(process.join("comm")) {
            names.insert(name.trim_end().to_owned());
        }
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let first = words.split(|byte| *byte == 0).next().unwrap_or_default();
        names.extend(file_name(&String::from_utf8_lossy(first)));
    }
    names
}

/// Where there is no `/proc`.
fn listed_by_ps() -> BTreeSet<String> {
    let listed = Command::new("ps").args(["-A", "-o", "comm="]).output();
    let text = listed.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(file_name).collect()
}

fn file_name(command: &str) -> Option<String> {
    let name = Path::new(command.trim()).file_name()?;
    Some(name.to_string_lossy().into_owned())
}

/// Turns looks into news.
#[derive(Debug, Default)]
struct Patience {
    /// What was told last.
    told: Reason,
    /// Looks in a row that contradict it.
    looks: u32,
}

impl Patience {
    /// What is new, if it is time to say so.
    fn looked(&mut self, seen: Reason) -> Option<Reason> {
        if seen.is_some() == self.told.is_some() {
            self.looks = 0;
            return None;
        }
        self.looks += 1;
        let enough = if seen.is_some() { SEEN } else { GONE };
        if self.looks < enough {
            return None;
        }
        self.looks = 0;
        self.told.clone_from(&seen);
        Some(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_program_and_a_path_a_file() {
        assert_eq!(Sight::of("game"), Sight::Program("game".to_owned()));
        assert_eq!(Sight::of("./mine"), Sight::File("./mine".into()));
    }

    #[test]
    fn it_is_told_after_two_looks_and_taken_back_after_ten() {
        let mut patience = Patience::default();
        let game = || Some("game".to_owned());
        assert_eq!(patience.looked(game()), None);
        assert_eq!(patience.looked(None), None, "one look alone was nothing");
        assert_eq!(patience.looked(game()), None);
        assert_eq!(patience.looked(game()), Some(game()));
        for _ in 1..GONE {
            assert_eq!(patience.looked(None), None);
        }
        assert_eq!(patience.looked(game()), None, "it is back");
        for _ in 1..GONE {
            assert_eq!(patience.looked(None), None);
        }
        assert_eq!(patience.looked(None), Some(None));
    }

    #[test]
    fn a_running_program_and_a_file_are_seen_and_others_are_not() {
        let scratch = std::env::temp_dir().join(format!("shoal-yielding-{}", std::process::id()));
        fs::remove_dir_all(&scratch).ok();
        fs::create_dir_all(&scratch).unwrap();
        let file = scratch.join("mine");
        let sights = [Sight::Program("no program has this name".to_owned()), Sight::File(file)];
        assert_eq!(seen(&sights), None);
        let Sight::File(file) = &sights[1] else { unreachable!() };
        fs::write(file, "").unwrap();
        assert!(seen(&sights).unwrap().ends_with("mine is there"));

        let proc = scratch.join("proc");
        for (process, comm, cmdline) in [
            ("17", "a_long_name_of_", "/opt/a_long_name_of_a_program\0--fast\0"),
            ("18", "kworker", ""),
            ("self", "not a process", ""),
        ] {
            let directory = proc.join(process);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("comm"), format!("{comm}\n")).unwrap();
            fs::write(directory.join("cmdline"), cmdline).unwrap();
        }
        let names: Vec<String> = programs(&proc).into_iter().collect();
        assert_eq!(names, ["a_long_name_of_", "a_long_name_of_a_program", "kworker"]);
        fs::remove_dir_all(&scratch).unwrap();
    }
}
