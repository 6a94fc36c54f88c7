//! Real launches of the real binary: to the end, stopped, killed, refused, continued. The models
//! are as small as models get; the processes, sockets, signals and files are real.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

/// Whatever a test waits for comes long before this, or never.
const PATIENCE_SECONDS: u32 = 60;

/// A worker's death ends the job within this: a promise to the user, not a measurement.
const DEATH_SECONDS: u32 = 10;

/// A network and a grid that train a step in a moment.
const SMALL: &str = "  model:
    preset: tiny
    hidden_size: 32
    intermediate_size: 48
    moe_intermediate_size: 16
    num_hidden_layers: 2
    num_attention_heads: 2
    n_routed_experts: 4
    num_experts_per_tok: 2
    n_group: 2
    topk_group: 1
    q_lora_rank: 16
    kv_lora_rank: 16
    qk_nope_head_dim: 8
    qk_rope_head_dim: 8
    v_head_dim: 8
    max_position_embeddings: 64
  parallelism:
    stages: 2
    expert_shards: 2
  workers:
    local: 4
    threads: 1
";

/// One manifest over generated text, in a directory of its own.
struct Place(PathBuf);

/// A launch, with its output in files. Killed when the test is over, however it ends.
struct Launch {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

/// How a launch ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new(name: &str, training: &str) -> Self {
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
        fs::write(path.join("job.yaml"), format!("{head}{SMALL}{data}{training}")).unwrap();
        Self(path)
    }

    fn run_dir(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn launch(&self, run: &str, more: &[&str]) -> Launch {
        let count = fs::read_dir(&self.0).unwrap().count();
        let (out, err) = (self.0.join(format!("{count}.out")), self.0.join(format!("{count}.err")));
        let child = Command::new(env!("CARGO_BIN_EXE_shoal"))
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

    /// The lines of `metrics.jsonl`, without the one figure that depends on the clock.
    fn losses(&self, run: &str) -> Vec<String> {
        let text = fs::read_to_string(self.run_dir(run).join("metrics.jsonl")).unwrap_or_default();
        let lines = text
            .lines()
            .map(|line| line.split(",\"tokens_per_second\"").next().unwrap().to_owned());
        lines.collect()
    }

    #[track_caller]
    fn wait_for_steps(&self, launch: &mut Launch, run: &str, n: usize) {
        wait(PATIENCE_SECONDS, &format!("{n} steps of {run}"), || {
            if let Some(status) = launch.child.try_wait().unwrap() {
                panic!("{status} before step {n}: {}", fs::read_to_string(&launch.err).unwrap());
            }
            self.losses(run).len() >= n
        });
    }

    /// Workers of this run that are alive, by number.
    fn workers(&self, run: &str) -> Vec<(u32, u32)> {
        let run_dir = self.run_dir(run).display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            // A process that ends while it is looked at has no command line.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let words: Vec<&str> = line.split('\0').collect();
            let after =
                |flag: &str| words.iter().position(|word| *word == flag).map(|at| words[at + 1]);
            if words.get(1) == Some(&"worker") && after("--run-dir") == Some(&run_dir) {
                found.push((after("--id").unwrap().parse().unwrap(), pid));
            }
        }
        found.sort_unstable();
        found
    }

    fn no_worker_is_left(&self, run: &str) {
        wait(DEATH_SECONDS, "the workers to be gone", || self.workers(run).is_empty());
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
    fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    fn ended_within(&mut self, seconds: u32) -> Ended {
        let mut status: Option<ExitStatus> = None;
        let err = self.err.clone();
        wait(seconds, &format!("the launch to end; see {}", err.display()), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        Ended { code: status.unwrap().code(), out: read(&self.out), err: read(&self.err) }
    }

    fn ended(&mut self) -> Ended {
        self.ended_within(PATIENCE_SECONDS)
    }

    /// The launch has to go well.
    #[track_caller]
    fn done(&mut self) -> Ended {
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

/// Words of a small language, drawn by `SplitMix64`.
fn words(seed: u64, n_bytes: usize) -> String {
    const WORDS: [&str; 12] = [
        "fish ", "swims ", "the ", "a ", "shoal ", "and ", "turns ", "as ", "one ", "big ",
        "small ", "sea.\n",
    ];
    let mut state = seed;
    let mut text = String::new();
    while text.len() < n_bytes {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        text.push_str(WORDS[((z ^ (z >> 31)) % WORDS.len() as u64) as usize]);
    }
    text
}

fn signal(pid: u32, name: &str) {
    let status =
        Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "sending {name} to {pid}");
}

/// Other processes cannot be made to run on a virtual clock, so this looks again and again.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "waits for real processes")]
fn wait(seconds: u32, what: &str, mut seen: impl FnMut() -> bool) {
    for _ in 0..seconds * 100 {
        if seen() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited {seconds} s for {what}");
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_run_goes_to_its_end_and_leaves_what_it_promised() {
    let place = Place::new("end", "    steps: 12\n");
    let ended = place.launch("run", &[]).done();
    place.no_worker_is_left("run");
    for wanted in [
        "worker-3",
        "Why:",
        "Loss",
        "held-out loss",
        "Sample 2",
        "Where everything is",
        "What to try next",
    ] {
        assert!(ended.out.contains(wanted), "want {wanted:?} in:\n{}", ended.out);
    }
    assert!(ended.err.contains("step 12/12") && !ended.err.contains('\r'), "{}", ended.err);
    let run = place.run_dir("run");
    let rows = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 12);
    let row_keys = [
        "balance_loss",
        "grad_norm",
        "loss",
        "lr",
        "main_loss",
        "mtp_loss",
        "step",
        "tokens",
        "tokens_per_second",
    ];
    assert!(
        rows.iter().zip(1_u64..).all(|(row, step)| keys(row) == row_keys && row["step"] == step)
    );
    let summary = json(&run.join("summary.json"));
    let summary_keys =
        ["heldout_loss", "heldout_nats_per_byte", "steps", "tokens", "tokens_per_second"];
    assert_eq!(
        keys(&summary),
        [&summary_keys[..], &["train_loss", "wall_seconds", "workers"]].concat()
    );
    assert_eq!((summary["steps"].as_u64(), summary["workers"].as_u64()), (Some(12), Some(4)));
    assert_eq!(summary["tokens"].as_u64(), rows.iter().map(|row| row["tokens"].as_u64()).sum());
    let (heldout, per_byte) = (&summary["heldout_loss"], &summary["heldout_nats_per_byte"]);
    assert!(heldout.as_f64().unwrap() > 0.0 && heldout == per_byte, "a token is a byte: {summary}");
    assert_eq!(json(&run.join("plan.json"))["hosts"].as_array().unwrap().len(), 4);
    assert!(run.join("checkpoints/step-12/manifest.json").exists());
    assert!(run.join("logs/worker-0.log").exists());
}

#[test]
fn a_finished_run_says_so_and_another_manifest_is_refused() {
    let place = Place::new("finished", "    steps: 4\n    precision: f32\n");
    place.launch("run", &[]).done();
    let rows = place.losses("run");
    let again = place.launch("run", &[]).done();
    assert!(again.out.contains("finished: 4 steps"), "{}", again.out);
    let other = place.launch("run", &["--set", "training.seed=2"]).ended();
    assert_eq!(other.code, Some(2), "{}", other.err);
    assert!(
        other.err.contains("spec.training.seed: 1 -> 2") && other.err.contains("--fresh"),
        "{}",
        other.err
    );
    assert_eq!(place.losses("run"), rows, "refusals change nothing");
    let more = place.launch("run", &["--set", "training.steps=6"]).done();
    assert!(more.err.contains("continuing after step 4"), "{}", more.err);
    assert_eq!(place.losses("run")[..4], rows);
    assert_eq!(place.losses("run").len(), 6);
    place.launch("run", &["--set", "training.seed=2", "--fresh"]).done();
    assert_eq!(place.losses("run").len(), 4);
    assert_ne!(place.losses("run"), rows);
}

#[test]
fn stopped_by_ctrl_c_and_continued_on_other_workers_it_equals_the_run_left_alone() {
    let place = Place::new("resume", "    steps: 150\n");
    place.launch("alone", &[]).done();
    let mut first = place.launch("stopped", &[]);
    place.wait_for_steps(&mut first, "stopped", 3);
    let second = place.launch("stopped", &[]).ended();
    assert_eq!(second.code, Some(1), "{}", second.err);
    assert!(second.err.contains(&format!("process {}", first.child.id())), "{}", second.err);
    first.signal("INT");
    let stopped = first.ended();
    assert_eq!(stopped.code, Some(130), "{}", stopped.err);
    place.no_worker_is_left("stopped");
    let done = place.losses("stopped").len();
    assert!(done < 150, "stopped too late to show anything");
    assert!(stopped.err.contains(&format!("stopped after step {done} of 150")), "{}", stopped.err);
    let continued = place.launch("stopped", &["--set", "workers.local=2"]).done();
    assert!(continued.err.contains(&format!("continuing after step {done}")), "{}", continued.err);
    assert_eq!(place.losses("stopped"), place.losses("alone"), "bit-equal, as text");
    let heldout =
        |run: &str| json(&place.run_dir(run).join("summary.json"))["heldout_loss"].clone();
    assert_eq!(heldout("stopped"), heldout("alone"));
}

#[test]
fn a_killed_worker_ends_the_job_by_name_and_the_next_launch_continues() {
    let place = Place::new("killed", "    steps: 150\n  checkpoint:\n    every: 2\n");
    let mut launch = place.launch("run", &[]);
    place.wait_for_steps(&mut launch, "run", 5);
    let (id, pid) = place.workers("run")[2];
    signal(pid, "KILL");
    let ended = launch.ended_within(DEATH_SECONDS);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let committed = place.losses("run").len();
    assert!(committed < 150, "killed too late to show anything");
    for wanted in [
        format!("worker-{id}"),
        format!("last committed step: {committed}"),
        "same command".to_owned(),
    ] {
        assert!(ended.err.contains(&wanted), "want {wanted:?} in:\n{}", ended.err);
    }
    place.no_worker_is_left("run");
    let next = place.launch("run", &[]).done();
    assert!(next.err.contains("continuing after step"), "{}", next.err);
    assert_eq!(place.losses("run").len(), 150);
}

#[test]
fn no_worker_outlives_a_killed_launcher() {
    let place = Place::new("orphans", "    steps: 100000\n  checkpoint:\n    every: 2\n");
    let mut launch = place.launch("run", &[]);
    place.wait_for_steps(&mut launch, "run", 3);
    assert_eq!(place.workers("run").len(), 4);
    launch.signal("KILL");
    assert_eq!(launch.ended().code, None);
    place.no_worker_is_left("run");
    let mut next = place.launch("run", &["--set", "workers.local=1"]);
    place.wait_for_steps(&mut next, "run", 6);
    next.signal("HUP");
    let ended = next.ended();
    assert_eq!(ended.code, Some(129), "{}", ended.err);
    assert!(ended.err.contains("continuing after step"), "{}", ended.err);
    place.no_worker_is_left("run");
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let place = Place::new("twice", "    steps: 100000\n");
    let mut launch = place.launch("run", &[]);
    place.wait_for_steps(&mut launch, "run", 2);
    // A stopped worker cannot agree to a checkpoint, so the first Ctrl-C alone would wait for it.
    let (_, pid) = place.workers("run")[1];
    signal(pid, "STOP");
    launch.signal("INT");
    wait(DEATH_SECONDS, "the first Ctrl-C to be heard", || {
        fs::read_to_string(&launch.err).unwrap().contains("writing a checkpoint")
    });
    launch.signal("INT");
    assert_eq!(launch.ended_within(DEATH_SECONDS).code, Some(130));
    place.no_worker_is_left("run");
}

#[test]
fn a_step_that_is_not_finite_is_refused_everywhere_and_named() {
    // A decay of lr x weight_decay = 10 multiplies every weight by -9 a step, until it overflows.
    let place = Place::new("refused", "    steps: 60\n    lr: 1\n    weight_decay: 10\n");
    let ended = place.launch("run", &["--set", "training.warmup_steps=0"]).ended();
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let committed = place.losses("run").len();
    for wanted in [
        "refused on all cells before the update".to_owned(),
        "error: worker-".to_owned(),
        format!("at step {}, in ", committed + 1),
        format!("last committed step: {committed}"),
        "lower training.lr".to_owned(),
    ] {
        assert!(ended.err.contains(&wanted), "want {wanted:?} in:\n{}", ended.err);
    }
    place.no_worker_is_left("run");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_training_goes_on_from_the_one_before() {
    let place = Place::new("damaged", "    steps: 6\n  checkpoint:\n    every: 2\n");
    place.launch("run", &["--set", "parallelism.replicas=2"]).done();
    let (rows, run) = (place.losses("run"), place.run_dir("run"));
    let path = run.join("checkpoints/step-6/master-cell-1.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let args = ["--set", "parallelism.replicas=2", "--set", "training.steps=8"];
    let more = place.launch("run", &args).done();
    for wanted in ["master-cell-1.safetensors", "step 6", "continuing after step 4"] {
        assert!(more.err.contains(wanted), "want {wanted:?} in:\n{}", more.err);
    }
    assert_eq!(place.losses("run")[..4], rows[..4]);
    assert_eq!(place.losses("run").len(), 8);
}
