//! A cluster in a directory of its own: its coordinator, its rigs, and the person who looks after it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::network::SMALL_NETWORK;

/// Whatever a test waits for comes long before so many looks, or never.
const LOOKS: u32 = 1_200;

/// Other processes cannot be made to run on a virtual clock, so this looks again and again.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "waits for real processes")]
pub(crate) fn wait(what: &str, mut is_there: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if is_there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("waited in vain for {what}");
}

pub(crate) struct Harbour {
    pub(crate) path: PathBuf,
}

/// A process of the cluster, killed when the test is over, however it ends.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Only fails for one that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn terminate(mut self) -> Option<i32> {
        let killed =
            Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(killed.success());
        wait("a process to go", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().code()
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Harbour {
    fn drop(&mut self) {
        // Launchers outlive their coordinator: here they must not.
        let directory = self.path.display().to_string();
        let _ = Command::new("pkill").args(["-KILL", "-f", &directory]).status();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Harbour {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shoal-cl-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        for seed in 0..8 {
            fs::write(path.join(format!("text-{seed}.txt")), words(seed, 4_000)).unwrap();
        }
        Self { path }
    }

    /// The verb of somebody at home here.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command.args(args).current_dir(&self.path).stdin(Stdio::null());
        command.env("XDG_CONFIG_HOME", self.path.join("config"));
        command.env("XDG_STATE_HOME", self.path.join("state"));
        command.env_remove("SHOAL_CLUSTER").env_remove("SHOAL_TOKEN").env_remove("RUST_LOG");
        command
    }

    /// How it ended, what it said, and what it said of itself.
    pub(crate) fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {err}");
        out
    }

    pub(crate) fn coordinator(&self) -> Process {
        self.coordinator_with(&[])
    }

    /// On the port of the one before, if there was one.
    pub(crate) fn coordinator_with(&self, more: &[&str]) -> Process {
        let listen =
            fs::read_to_string(self.address_file()).unwrap_or_else(|_| "127.0.0.1:0".to_owned());
        let state = self.path.join("cluster").display().to_string();
        let args = ["coordinator", "--state", &state, "--listen", listen.trim()];
        let process = self.background("coordinator", &[&args, more].concat());
        wait("the coordinator", || self.run(&["ps"]).0 == Some(0));
        process
    }

    fn address_file(&self) -> PathBuf {
        self.path.join("config/shoal/clusters/default/address")
    }

    pub(crate) fn address(&self) -> String {
        fs::read_to_string(self.address_file()).unwrap().trim().to_owned()
    }

    fn background(&self, name: &str, args: &[&str]) -> Process {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path.join(format!("{name}.log")))
            .unwrap();
        let mut command = self.command(args);
        Process(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    /// The file of a new token.
    pub(crate) fn token(&self, more: &[&str]) -> PathBuf {
        let token = self.ok(&[&["token", "create"], more].concat());
        let count = fs::read_dir(&self.path).unwrap().count();
        let path = self.path.join(format!("token-{count}"));
        fs::write(&path, token).unwrap();
        path
    }

    /// A rig that is there.
    #[track_caller]
    pub(crate) fn rig(&self, name: &str, token: Option<&Path>) -> Process {
        let process = self.rig_that_comes(name, token);
        wait(&format!("rig {name}"), || self.rig_is(name) != "away");
        process
    }

    pub(crate) fn rig_that_comes(&self, name: &str, token: Option<&Path>) -> Process {
        self.rig_with(name, token, &[])
    }

    pub(crate) fn rig_with(&self, name: &str, token: Option<&Path>, more: &[&str]) -> Process {
        let (state, address) = (self.path.join(name).display().to_string(), self.address());
        let mut args = vec!["worker", "--state", &state, "--join", &address, "--threads", "1"];
        let token = token.map(|token| token.display().to_string());
        if let Some(token) = &token {
            args.extend(["--name", name, "--token-file", token]);
        }
        args.extend(more);
        self.background(&format!("rig-{name}"), &args)
    }

    pub(crate) fn logs_of_rig(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(format!("rig-{name}.log"))).unwrap_or_default()
    }

    /// Writes a manifest of 2 x 2 cells and applies it.
    #[track_caller]
    pub(crate) fn apply(&self, name: &str, steps: u64, more: &[&str]) {
        self.manifest(name, steps);
        let file = format!("{name}.yaml");
        self.ok(&[&["apply", &file], more].concat());
    }

    pub(crate) fn manifest(&self, name: &str, steps: u64) {
        let text = format!(
            "apiVersion: shoal/v1\nkind: Training\nmetadata:\n  name: {name}\nspec:\n  model:\n{SMALL_NETWORK}  \
             parallelism: {{stages: 2, expert_shards: 2}}\n  workers: {{threads: 1, pin: false}}\n  data:\n    \
             files: '*.txt'\n    heldout: 0.2\n  training:\n    steps: {steps}\n    batch: 4\n    sequence: 32\n    \
             warmup_steps: 2\n  checkpoint:\n    every: 1000000\n    memory: {{every: 5}}\n"
        );
        fs::write(self.path.join(format!("{name}.yaml")), text).unwrap();
    }

    pub(crate) fn overview(&self) -> Value {
        serde_json::from_str(&self.ok(&["ps", "-o", "json"])).unwrap()
    }

    fn job(&self, name: &str) -> Value {
        let overview = self.overview();
        let jobs = overview["jobs"].as_array().unwrap();
        jobs.iter().find(|job| job["name"] == name).cloned().unwrap_or(Value::Null)
    }

    pub(crate) fn phase(&self, name: &str) -> String {
        self.job(name)["phase"].as_str().unwrap_or("unknown").to_owned()
    }

    pub(crate) fn step(&self, name: &str) -> u64 {
        self.job(name)["run"]["step"].as_u64().unwrap_or(0)
    }

    pub(crate) fn rig_is(&self, name: &str) -> String {
        let overview = self.overview();
        let rig =
            overview["rigs"].as_array().unwrap().iter().find(|rig| rig["name"] == name).cloned();
        rig.map_or_else(|| "away".to_owned(), |rig| rig["is"].as_str().unwrap().to_owned())
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, name: &str, phase: &str) {
        wait(&format!("{name} to be {phase}"), || {
            let job = self.job(name);
            assert!(phase == "failed" || job["phase"] != "failed", "{job:#}");
            job["phase"] == phase
        });
    }

    #[track_caller]
    pub(crate) fn wait_for_step(&self, name: &str, step: u64) {
        wait(&format!("step {step} of {name}"), || {
            let job = self.job(name);
            assert!(job["phase"] != "failed", "{job:#}");
            job["run"]["step"].as_u64().is_some_and(|at| at >= step)
        });
    }

    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        self.path.join("cluster/jobs").join(name)
    }

    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        lines(&self.run_dir(name).join("events.jsonl"))
    }

    /// Of each step, in order, without the one figure that depends on the clock; superseded ones left out.
    pub(crate) fn losses(run_dir: &Path) -> Vec<String> {
        let mut steps: Vec<(u64, String)> = Vec::new();
        for mut value in lines(&run_dir.join("metrics.jsonl")) {
            if let Some(to) = value["rolled_back_to"].as_u64() {
                steps.retain(|(step, _)| *step <= to);
            } else if value["evaluation"].is_null() {
                value.as_object_mut().unwrap().remove("tokens_per_second");
                steps.push((value["step"].as_u64().unwrap(), value.to_string()));
            }
        }
        steps.into_iter().map(|(_, line)| line).collect()
    }
}

/// The whole lines of a file of JSON.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Words of a small language, the same for the same seed.
fn words(seed: u64, count: usize) -> String {
    const WORDS: [&str; 8] =
        ["fish ", "shoal ", "swims ", "deep ", "in ", "the ", "blue ", "sea.\n"];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = String::new();
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(WORDS[(state % 8) as usize]);
    }
    text
}
