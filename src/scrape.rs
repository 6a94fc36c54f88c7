//! `/metrics` for Prometheus, on this machine's loopback only.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;

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

/// Answers `GET /metrics` with `text` until the process ends; port 0 takes any free one. Returns
/// where it listens.
pub(crate) async fn serve<T>(port: u16, text: T) -> anyhow::Result<SocketAddr>
where
    T: Fn() -> String + Clone + Send + Sync + 'static,
{
    listen(port, text, Router::new()).await
}

/// The same, and `GET /targets` with every process of the run, for Prometheus's `http_sd_configs`.
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
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.with_context(|| {
        format!("opening port {port} for metrics: choose another with spec.metrics.port")
    })?;
    let address = listener.local_addr().context("asking for the port of metrics")?;
    let answer = move || {
        let body = text();
        async move { ([(CONTENT_TYPE, FORMAT)], body) }
    };
    let router = router.route("/metrics", get(answer));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(%error, "metrics are no longer served");
        }
    });
    Ok(address)
}
