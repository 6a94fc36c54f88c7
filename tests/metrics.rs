//! What Prometheus reads from a run while it trains, and that the documentation lists it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A slow machine gets this many looks, a tenth of a second apart.
const LOOKS: u32 = 1200;

struct Run {
    child: Child,
    dir: PathBuf,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start() -> Run {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("metrics");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let lines = (0..4000_u32).map(|i| format!("fish {} swims {} miles\n", i % 97, i * 7 % 31));
    fs::write(dir.join("text.txt"), lines.collect::<String>()).unwrap();
    let manifest = format!(
        "apiVersion: shoal/v1\nkind: Training\nspec:\n  \
         model: {{hidden_size: 32, intermediate_size: 48, moe_intermediate_size: 16}}\n  \
         data: {{files: [\"{}\"]}}\n  \
         training: {{steps: 100000, batch: 2, sequence: 16, warmup_steps: 1}}\n  \
         evaluation: {{every: 2, tokens_max: 64}}\n  \
         parallelism: {{stages: 2}}\n  workers: {{local: 2, threads: 1}}\n  \
         checkpoint: {{every: 2}}\n",
        dir.join("text.txt").display()
    );
    fs::write(dir.join("job.yaml"), manifest).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_shoal"))
        .arg("launch")
        .arg(dir.join("job.yaml"))
        .arg("--run-dir")
        .arg(dir.join("run"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Run { child, dir }
}

/// The address that a process of the run announced.
fn target(run: &Run, process: &str) -> String {
    let path = run.dir.join("run/targets").join(format!("{process}.json"));
    for _ in 0..LOOKS {
        if let Ok(text) = fs::read_to_string(&path) {
            let targets: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(targets[0]["labels"]["process"], process);
            return targets[0]["targets"][0].as_str().unwrap().to_owned();
        }
        wait();
    }
    panic!("{process} did not announce itself");
}

#[expect(clippy::disallowed_methods, reason = "other processes keep their own time")]
fn wait() {
    std::thread::sleep(Duration::from_millis(100));
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

fn scrape(address: &str) -> String {
    let answer = get(address, "/metrics");
    assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
    answer
}

/// Scrapes until the line begins with `wanted` and ends with another value than 0.
fn scrape_until(address: &str, wanted: &str) -> String {
    for _ in 0..LOOKS {
        let answer = scrape(address);
        let line = answer.lines().find(|line| line.starts_with(wanted));
        if line.is_some_and(|line| !line.ends_with(" 0")) {
            return answer;
        }
        wait();
    }
    panic!("{wanted} stays 0 at {address}");
}

#[track_caller]
fn above_zero(answer: &str, name: &str) {
    let line = answer.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    assert!(line.unwrap().parse::<f64>().unwrap() > 0.0, "{name} {line:?}");
}

/// Names of ours that have a `# TYPE` line.
fn names(answer: &str) -> BTreeSet<String> {
    let types = answer.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let name = |line: &str| line.split(' ').next().unwrap().to_owned();
    types.map(name).filter(|name| name.starts_with("shoal_")).collect()
}

#[test]
fn both_daemons_serve_what_the_documentation_lists() {
    let run = start();
    let (coordinator, worker) = (target(&run, "coordinator"), target(&run, "worker-1"));
    let of_run = scrape_until(&coordinator, "shoal_checkpoints_total");
    let of_worker = scrape_until(&worker, "shoal_worker_steps_total");
    let of_run = of_run + &scrape_until(&coordinator, "shoal_evaluation_loss");
    for wanted in [
        "shoal_train_loss{part=\"mtp\"}",
        "shoal_model_parameters{kind=\"active\"}",
        "shoal_workers{state=\"training\"} 2",
        "shoal_membership_epoch 1",
        "shoal_recoveries_total{cause=\"nonfinite\"} 0",
        "shoal_auth_failures_total{reason=\"wrong\"} 0",
        "shoal_worker_last_heartbeat_timestamp_seconds{worker=\"1\"} 1",
        "shoal_worker_speed_ratio{worker=\"0\"}",
        "shoal_checkpoint_duration_seconds_count{phase=\"commit\"}",
        "shoal_checkpoint_last_success_timestamp_seconds 1",
        "shoal_router_load_max_ratio{layer=\"1\"}",
        "shoal_router_dropped_tokens_total 0",
        "shoal_steps_target 100000",
        "grid=\"2x1x1\"",
    ] {
        assert!(of_run.contains(wanted), "want {wanted} in:\n{of_run}");
    }
    for wanted in [
        "shoal_step_duration_seconds_count{phase=\"bubble\"}",
        "shoal_step_duration_seconds_count{phase=\"optimizer\"}",
        "shoal_collective_bytes_total{direction=\"received\",op=\"recv\"}",
        "shoal_expert_load_ratio_count{layer=",
        "shoal_worker_generation 1",
        "shoal_checkpoint_duration_seconds_count{phase=\"write\"}",
        "shoal_worker_info{run_id=",
        "process_resident_memory_bytes",
    ] {
        assert!(of_worker.contains(wanted), "want {wanted} in:\n{of_worker}");
    }
    above_zero(&of_run, "shoal_model_flops_total");
    above_zero(&of_run, "shoal_step_predicted_seconds");
    above_zero(&of_worker, "shoal_worker_peak_flops");
    let found = get(&coordinator, "/targets");
    let found = found.split("\r\n\r\n").nth(1).unwrap();
    let found: serde_json::Value = serde_json::from_str(found).unwrap();
    let named = |process: &str| {
        let groups = found.as_array().unwrap();
        groups.iter().find(|group| group["labels"]["process"] == process).unwrap().clone()
    };
    assert_eq!(found.as_array().unwrap().len(), 3, "{found}");
    assert_eq!(named("worker-1")["targets"][0], worker.as_str());
    assert_eq!(named("coordinator")["labels"]["run"], "run");
    let documented =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    let listed = |name: &String| !documented.contains(&format!("| `{name}` |"));
    let missing: Vec<String> =
        names(&of_run).into_iter().chain(names(&of_worker)).filter(listed).collect();
    assert!(missing.is_empty(), "docs/metrics.md does not list {missing:?}");
    let served = names(&of_run).into_iter().chain(names(&of_worker)).collect::<BTreeSet<String>>();
    let rows = documented.lines().filter_map(|line| line.strip_prefix("| `shoal_"));
    // A machine of tests has no GPU: those names are held against a made-up one in the worker.
    // A cluster's are held against a cluster in `tests/cluster.rs`.
    for row in rows.filter(|row| !row.starts_with("gpu_") && !row.starts_with("cluster_")) {
        let name = format!("shoal_{}", row.split('`').next().unwrap());
        assert!(served.contains(&name), "{name} is not served");
    }
}
