//! A manifest over generated text in a directory of its own, and launches of the real binary there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::network::SMALL_NETWORK;

/// Whatever a test waits for comes long before this, or never.
pub(crate) const PATIENCE_SECONDS: u32 = 60;

/// A worker's death ends the job within this: a promise to the user, not a measurement.
pub(crate) const DEATH_SECONDS: u32 = 10;

/// A lost worker ends the run.
pub(crate) const ALL_OR_NOTHING: [&str; 4] =
    ["--set", "workers.restarts=0", "--set", "workers.min=4"];

/// A grid of four cells, each on a worker of its own.
const GRID: &str = "  parallelism:
    stages: 2
    expert_shards: 2
  workers:
    local: 4
    threads: 1
";

/// One manifest over generated text, in a directory of its own.
pub(crate) struct Place(pub(crate) PathBuf);

/// A launch, with its output in files. Killed when the test is over, however it ends.
pub(crate) struct Launch {
    pub(crate) child: Child,
    out: PathBuf,
    pub(crate) err: PathBuf,
}

/// How a launch ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn new(name: &str, training: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("shoal-processes-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        for seed in 0..8 {
            fs::write(path.join(format!("text-{seed}.txt")), words(seed, 4000)).unwrap();
        }
        let head = "apiVersion: shoal/v1\nkind: Training\nmetadata:\n  name: small\nspec:\n";
        let data = format!("  data:\n    files: {}/*.txt\n    heldout: 0.2\n", path.display());
        let training =
            format!("  training:\n    batch: 4\n    sequence: 32\n    warmup_steps: 2\n{training}");
        fs::write(
            path.join("job.yaml"),
            format!("{head}  model:\n{SMALL_NETWORK}{GRID}{data}{training}"),
        )
        .unwrap();
        Self(path)
    }

    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn launch(&self, run: &str, more: &[&str]) -> Launch {
        self.launch_by(Command::new(shoal()), run, more)
    }

    /// The same by a command that runs the binary in surroundings of the caller's.
    pub(crate) fn launch_by(&self, mut command: Command, run: &str, more: &[&str]) -> Launch {
        let count = fs::read_dir(&self.0).unwrap().count();
        let (out, err) = (self.0.join(format!("{count}.out")), self.0.join(format!("{count}.err")));
        let child = command
            .arg("launch")
            .arg(self.0.join("job.yaml"))
            .arg("--run-dir")
            .arg(self.run_dir(run))
            .args(more)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .spawn()
            .unwrap();
        Launch { child, out, err }
    }

    /// The lines of `metrics.jsonl` about steps, without the one figure that depends on the clock and
    /// without those that a rollback has superseded.
    pub(crate) fn losses(&self, run: &str) -> Vec<String> {
        let mut steps: Vec<(u64, String)> = Vec::new();
        for (value, line) in self.lines(run) {
            if let Some(to) = value["rolled_back_to"].as_u64() {
                steps.retain(|(step, _)| *step <= to);
            } else if value["evaluation"].is_null() {
                let line = line.split(",\"tokens_per_second\"").next().unwrap();
                steps.push((value["step"].as_u64().unwrap(), line.to_owned()));
            }
        }
        steps.into_iter().map(|(_, line)| line).collect()
    }

    /// The lines of `metrics.jsonl` about evaluations, superseded ones included.
    pub(crate) fn evaluations(&self, run: &str) -> Vec<Value> {
        let lines = self.lines(run).into_iter().map(|(value, _)| value);
        lines.filter(|value| !value["evaluation"].is_null()).collect()
    }

    /// How many events of a kind a run has had, over all its launches.
    pub(crate) fn count(&self, run: &str, kind: &str) -> usize {
        self.events(run).iter().filter(|event| event["kind"] == kind).count()
    }

    /// Events of a run, oldest first.
    pub(crate) fn events(&self, run: &str) -> Vec<Value> {
        self.lines_of(run, "events.jsonl").into_iter().map(|(value, _)| value).collect()
    }

    /// The whole lines of `metrics.jsonl`.
    fn lines(&self, run: &str) -> Vec<(Value, String)> {
        self.lines_of(run, "metrics.jsonl")
    }

    fn lines_of(&self, run: &str, file: &str) -> Vec<(Value, String)> {
        let text = fs::read_to_string(self.run_dir(run).join(file)).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let parsed = |line: &str| (serde_json::from_str(line).unwrap(), line.trim_end().to_owned());
        whole.map(parsed).collect()
    }

    #[track_caller]
    pub(crate) fn wait_for_steps(&self, launch: &mut Launch, run: &str, n: usize) {
        wait(PATIENCE_SECONDS, &format!("{n} steps of {run}"), || {
            if let Some(status) = launch.child.try_wait().unwrap() {
                panic!("{status} before step {n}: {}", fs::read_to_string(&launch.err).unwrap());
            }
            self.losses(run).len() >= n
        });
    }

    /// Waits until there is a checkpoint to go on from: steps do not wait for it to be whole.
    #[track_caller]
    pub(crate) fn wait_for_a_checkpoint(&self, run: &str) {
        let directory = self.run_dir(run).join("checkpoints");
        wait(PATIENCE_SECONDS, "a checkpoint", || {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name());
            names.into_iter().any(|name| name.to_string_lossy().starts_with("step-"))
        });
    }

    /// Workers of this run that are alive, by number.
    pub(crate) fn workers(&self, run: &str) -> Vec<(u32, u32)> {
        let number = |words: &[String]| after(words, "--id").unwrap().parse().unwrap();
        let found = self.processes(run, "host").into_iter();
        let mut found: Vec<_> = found.map(|(pid, words)| (number(&words), pid)).collect();
        found.sort_unstable();
        found
    }

    /// The process that conducts this run, if one lives.
    pub(crate) fn coordinator(&self, run: &str) -> Option<u32> {
        self.processes(run, "conduct").first().map(|(pid, _)| *pid)
    }

    /// Processes of a verb in this run, with their command lines.
    fn processes(&self, run: &str, verb: &str) -> Vec<(u32, Vec<String>)> {
        let run_dir = self.run_dir(run).display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            // A process that ends while it is looked at has no command line.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let words: Vec<String> = line.split('\0').map(str::to_owned).collect();
            let is_of_run = after(&words, "--run-dir").as_ref() == Some(&run_dir);
            if is_of_run && words.get(1).is_some_and(|word| word == verb) {
                found.push((pid, words));
            }
        }
        found
    }

    pub(crate) fn no_worker_is_left(&self, run: &str) {
        wait(DEATH_SECONDS, "the workers and their coordinator to be gone", || {
            self.workers(run).is_empty() && self.coordinator(run).is_none()
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

impl Launch {
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub(crate) fn ended_within(&mut self, seconds: u32) -> Ended {
        let mut status: Option<ExitStatus> = None;
        let err = self.err.clone();
        wait(seconds, &format!("the launch to end; see {}", err.display()), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        Ended { code: status.unwrap().code(), out: read(&self.out), err: read(&self.err) }
    }

    pub(crate) fn ended(&mut self) -> Ended {
        self.ended_within(PATIENCE_SECONDS)
    }

    /// The launch has to go well.
    #[track_caller]
    pub(crate) fn done(&mut self) -> Ended {
        let ended = self.ended();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The word behind a flag.
fn after(words: &[String], flag: &str) -> Option<String> {
    let at = words.iter().position(|word| word == flag)?;
    words.get(at + 1).cloned()
}

/// The binary under test: a test is told where it is, an example lies in a directory beside it.
pub(crate) fn shoal() -> PathBuf {
    let beside = || {
        let own = std::env::current_exe().expect("this program has a file");
        own.parent().and_then(Path::parent).expect("examples/ is beside it").join("shoal")
    };
    option_env!("CARGO_BIN_EXE_shoal").map_or_else(beside, PathBuf::from)
}

/// Words of a small language, drawn by `SplitMix64`.
pub(crate) fn words(seed: u64, n_bytes: usize) -> String {
    const WORDS: [&str; 12] = [
        "fish ", "swims ", "the ", "a ", "shoal ", "and ", "turns ", "as ", "one ", "big ",
        "small ", "sea.\n",
    ];
    let mut state = seed;
    let mut text = String::new();
    while text.len() < n_bytes {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        text.push_str(WORDS[(mix(state) % WORDS.len() as u64) as usize]);
    }
    text
}

/// The finaliser of `SplitMix64`.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn signal(pid: u32, name: &str) {
    let status =
        Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "sending {name} to {pid}");
}

/// Other processes cannot be made to run on a virtual clock, so this looks again and again.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "waits for real processes")]
pub(crate) fn wait(seconds: u32, what: &str, mut seen: impl FnMut() -> bool) {
    for _ in 0..seconds * 100 {
        if seen() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited {seconds} s for {what}");
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
