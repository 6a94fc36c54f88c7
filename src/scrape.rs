//! `/metrics` for Prometheus, on this machine's loopback only.

pub(crate) mod cluster;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use serde_json::{Value, json};
use shoal_plan::plan::WorkerId;
use tokio::net::TcpListener;
use ureq::Agent;

use crate::run_dir::{RunDir, write_atomically};

/// Prometheus's text format.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Says where `name` is found, as one of the files that Prometheus's `file_sd_configs` reads. `run` is
/// the run directory's own name: what belongs together, and what one looks for.
pub(crate) fn announce(directory: &Path, name: &str, address: SocketAddr) -> anyhow::Result<()> {
    let run = RunDir::name_of(&directory.join(".."));
    let labels = json!({ "process": name, "run": run });
    let targets = json!([{ "targets": [address.to_string()], "labels": labels }]);
    let path = directory.join(format!("{name}.json"));
    write_atomically(&path, format!("{targets:#}\n").as_bytes())
}

/// The processes of this run are gone: nobody need look for them. What stays costs nothing.
pub(crate) fn withdraw(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "json") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A process that does not answer within this has no metrics now.
const PATIENCE: Duration = Duration::from_millis(500);

/// The workers of a run and where their metrics are: on this machine and nowhere else.
pub(crate) fn workers_of(run: &Path) -> Vec<(WorkerId, SocketAddr)> {
    let files = std::fs::read_dir(RunDir::scrape_targets_of(run)).into_iter().flatten().flatten();
    let worker = |path: PathBuf| {
        let name = path.file_stem()?.to_str()?.to_owned();
        let number = name.strip_prefix("worker-")?.parse().ok()?;
        Some((WorkerId(number), target(run, &name)?))
    };
    let mut found: Vec<_> = files.filter_map(|file| worker(file.path())).collect();
    found.sort();
    found
}

/// Where a process of a run has said that its metrics are.
pub(crate) fn target(run: &Path, process: &str) -> Option<SocketAddr> {
    let path = RunDir::scrape_targets_of(run).join(format!("{process}.json"));
    let groups: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let address: SocketAddr = groups[0]["targets"][0].as_str()?.parse().ok()?;
    address.ip().is_loopback().then_some(address)
}

/// Reads a process's metrics, of at most so many bytes. Waits for them.
///
/// # Errors
/// Why they are not there, as a sentence.
pub(crate) fn fetch(address: SocketAddr, bytes_max: u64) -> Result<String, String> {
    ask(address, "/metrics", bytes_max)
}

/// The same, of the newest step of a worker.
pub(crate) fn fetch_step(address: SocketAddr, bytes_max: u64) -> Result<String, String> {
    ask(address, "/step", bytes_max)
}

fn ask(address: SocketAddr, path: &str, bytes_max: u64) -> Result<String, String> {
    let config =
        Agent::config_builder().proxy(None).timeout_global(Some(PATIENCE)).max_redirects(0);
    let agent: Agent = config.build().into();
    let answer = agent.get(format!("http://{address}{path}")).call();
    let mut answer = answer.map_err(|error| format!("its metrics cannot be read: {error}"))?;
    let text = answer.body_mut().with_config().limit(bytes_max).read_to_string();
    text.map_err(|error| format!("its metrics cannot be read: {error}"))
}

/// All targets that were announced, as Prometheus's `http_sd_configs` wants them: in one list.
fn targets(directory: &Path) -> Value {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = files.map(|entry| entry.path()).collect();
    paths.sort();
    let json = paths.iter().filter(|path| path.extension().is_some_and(|kind| kind == "json"));
    // One that is just being replaced or removed is seen the next time.
    let groups = json.filter_map(|path| {
        serde_json::from_str::<Vec<Value>>(&std::fs::read_to_string(path).ok()?).ok()
    });
    Value::Array(groups.flatten().collect())
}

/// Answers `GET /metrics` with `text`, and `GET /step` with a worker's newest step, until the process ends; port 0 takes
/// any free one. Returns where it listens.
pub(crate) async fn serve_worker<T, S>(port: u16, text: T, step: S) -> anyhow::Result<SocketAddr>
where
    T: Fn() -> String + Clone + Send + Sync + 'static,
    S: Fn() -> String + Clone + Send + Sync + 'static,
{
    let answer = move || {
        let body = step();
        async move { ([(CONTENT_TYPE, "application/json")], body) }
    };
    listen(port, text, Router::new().route("/step", get(answer))).await
}

/// Metrics of a coordinator, and `GET /targets` with every process of the run, for Prometheus's `http_sd_configs`.
pub(crate) async fn serve_with_targets<T>(
    port: u16,
    text: T,
    directory: PathBuf,
) -> anyhow::Result<SocketAddr>
where
    T: Fn() -> String + Clone + Send + Sync + 'static,
{
    let answer = move || {
        let body = targets(&directory).to_string();
        async move { ([(CONTENT_TYPE, "application/json")], body) }
    };
    listen(port, text, Router::new().route("/targets", get(answer))).await
}

async fn listen<T>(port: u16, text: T, router: Router) -> anyhow::Result<SocketAddr>
where
    T: Fn() -> String + Clone + Send + Sync + 'static,
{
    let listener = bind(port, "spec.metrics.port").await?;
    let address = listener.local_addr().context("asking for the port of metrics")?;
    let answer = move || {
        let body = text();
        async move { ([(CONTENT_TYPE, FORMAT)], body) }
    };
    spawn(listener, router.route("/metrics", get(answer)));
    Ok(address)
}

/// `how` chooses another port.
async fn bind(port: u16, how: &str) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    bound.with_context(|| format!("opening port {port} for metrics: choose another with {how}"))
}

fn spawn(listener: TcpListener, router: Router) {
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(%error, "metrics are no longer served");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::tests::Dir;

    #[test]
    fn only_processes_of_this_machine_are_asked() {
        let dir = Dir::new("scrape-targets");
        let place = RunDir::scrape_targets_of(&dir.0);
        std::fs::create_dir_all(&place).unwrap();
        let write = |name: &str, address: &str| {
            let text = format!("[{{\"targets\": [\"{address}\"], \"labels\": {{}}}}]");
            std::fs::write(place.join(name), text).unwrap();
        };
        write("worker-1.json", "127.0.0.1:9");
        write("worker-2.json", "10.0.0.1:9");
        write("worker-x.json", "127.0.0.1:9");
        write("coordinator.json", "127.0.0.1:9");
        std::fs::write(place.join("worker-3.json"), "[").unwrap();
        assert_eq!(workers_of(&dir.0), [(WorkerId(1), "127.0.0.1:9".parse().unwrap())]);
        let nobody = fetch("127.0.0.1:9".parse().unwrap(), 1000).unwrap_err();
        assert!(nobody.contains("cannot be read"), "{nobody}");
    }
}
