//! A cluster's metrics on one port of its coordinator's loopback: its own, those of its runs' coordinators, and those of
//! its rigs' workers, which nobody can reach from outside; and the list of all of these for `http_sd_configs`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use shoal_cluster::watching::{Unwatched, Watch, Watched};
use tokio::sync::Semaphore;

use super::{FORMAT, announce, bind, fetch, spawn, target};

/// Questions under way at a time; beyond, whoever asks is told to come again.
const AT_A_TIME: usize = 64;

/// Metrics of a run's coordinator.
const BYTES_MAX: u64 = 4 << 20;

/// What is served.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) watch: Watch,
    /// The cluster's state directory.
    pub(crate) directory: PathBuf,
}

struct Served {
    cluster: Cluster,
    address: SocketAddr,
    turns: Semaphore,
}

/// Serves until the process ends, and says where in `targets/cluster.json` of the state directory.
///
/// # Errors
/// The port is taken, or that file cannot be written.
pub(crate) async fn serve(port: u16, cluster: Cluster) -> anyhow::Result<SocketAddr> {
    let listener = bind(port, "--metrics-port").await?;
    let address = listener.local_addr()?;
    let targets = cluster.directory.join("targets");
    std::fs::create_dir_all(&targets)?;
    announce(&targets, "cluster", address)?;
    let served = Arc::new(Served { cluster, address, turns: Semaphore::new(AT_A_TIME) });
    let router = Router::new()
        .route("/metrics", get(own))
        .route("/sd", get(list))
        .route("/jobs/{job}/metrics", get(of_job))
        .route("/rigs/{rig}/metrics", get(of_rig))
        .with_state(served);
    spawn(listener, router);
    Ok(address)
}

async fn own(State(served): State<Arc<Served>>) -> Response {
    match served.cluster.watch.metrics().await {
        Some(text) => metrics(text),
        None => failed(StatusCode::SERVICE_UNAVAILABLE, "the coordinator ends"),
    }
}

async fn list(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response {
    let runs = served.cluster.watch.runs().await;
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let body = groups(&served.cluster.name, &reached(host, served.address), &runs).to_string();
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// Prometheus reaches the rest as it has reached the list.
fn reached(host: Option<&str>, address: SocketAddr) -> String {
    let is_plain = |host: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
        host.contains(':') && host.len() <= 255 && host.chars().all(plain)
    };
    host.filter(is_plain).map_or_else(|| address.to_string(), str::to_owned)
}

/// In the form of `http_sd_configs`. Every target is here, and only its path differs.
fn groups(cluster: &str, host: &str, runs: &[Watched]) -> Value {
    let group = |path: String, more: Value| {
        let mut labels = json!({ "__metrics_path__": path, "cluster": cluster });
        if let (Some(labels), Some(more)) = (labels.as_object_mut(), more.as_object()) {
            labels.extend(more.clone());
        }
        json!({ "targets": [host], "labels": labels })
    };
    let mut groups = vec![group("/metrics".to_owned(), json!({ "process": "cluster" }))];
    for Watched { job, rigs } in runs {
        let of_run = json!({ "run": job, "process": "coordinator" });
        groups.push(group(format!("/jobs/{job}/metrics"), of_run));
        for (worker, rig) in rigs {
            let of_rig = json!({ "run": job, "process": worker.to_string(), "rig": rig });
            groups.push(group(format!("/rigs/{rig}/metrics"), of_rig));
        }
    }
    Value::Array(groups)
}

async fn of_job(State(served): State<Arc<Served>>, Path(job): Path<String>) -> Response {
    let Ok(_turn) = served.turns.try_acquire() else { return busy() };
    // Only names of jobs lead into the directory.
    if !served.cluster.watch.runs().await.iter().any(|run| run.job == job) {
        return failed(StatusCode::NOT_FOUND, &format!("no job {job:?} is under way"));
    }
    let run = served.cluster.directory.join(shoal_cluster::JOBS).join(&job);
    let read = move || {
        let address = target(&run, "coordinator").ok_or("it has not said where its metrics are")?;
        fetch(address, BYTES_MAX)
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(text)) => metrics(text),
        Ok(Err(why)) => failed(StatusCode::BAD_GATEWAY, &format!("{job}: {why}")),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn of_rig(State(served): State<Arc<Served>>, Path(rig): Path<String>) -> Response {
    let Ok(_turn) = served.turns.try_acquire() else { return busy() };
    match served.cluster.watch.of_rig(&rig).await {
        Ok(text) => metrics(text),
        Err(error @ Unwatched::Nobody(_)) => failed(StatusCode::NOT_FOUND, &error.to_string()),
        Err(error @ Unwatched::Silent { .. }) => {
            failed(StatusCode::BAD_GATEWAY, &error.to_string())
        }
    }
}

fn metrics(text: String) -> Response {
    ([(CONTENT_TYPE, FORMAT)], text).into_response()
}

fn busy() -> Response {
    failed(StatusCode::SERVICE_UNAVAILABLE, "too many ask at once: try again")
}

fn failed(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use shoal_plan::plan::WorkerId;

    use super::*;

    #[test]
    fn every_target_is_this_port_by_its_own_path_and_says_what_it_is() {
        let rigs = BTreeMap::from([(WorkerId(0), "attic".to_owned())]);
        let runs = [Watched { job: "first".to_owned(), rigs }];
        let groups = groups("lab", "127.0.0.1:9", &runs);
        let labels: Vec<&Value> =
            groups.as_array().unwrap().iter().map(|one| &one["labels"]).collect();
        assert_eq!(labels.len(), 3);
        assert!(
            groups.as_array().unwrap().iter().all(|one| one["targets"] == json!(["127.0.0.1:9"]))
        );
        assert_eq!(labels[0]["__metrics_path__"], "/metrics");
        assert_eq!(
            *labels[2],
            json!({
                "__metrics_path__": "/rigs/attic/metrics", "cluster": "lab", "process": "worker-0", "rig": "attic",
                "run": "first"
            })
        );
    }

    #[test]
    fn the_list_names_the_host_by_which_it_was_asked_and_no_nonsense() {
        let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
        assert_eq!(reached(Some("coordinator:9410"), address), "coordinator:9410");
        assert_eq!(reached(Some("[::1]:9410"), address), "[::1]:9410");
        for host in [None, Some("coordinator"), Some("a/b:1"), Some("a b:1")] {
            assert_eq!(reached(host, address), "127.0.0.1:9", "{host:?}");
        }
    }
}
