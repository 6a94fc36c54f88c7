//! What a Prometheus beside the coordinator sees of a cluster, and a person with `shoal top`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::Value;

use super::harbour::{Harbour, wait};

/// Status and body.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// Names of the cluster's own metrics that `text` has a type of.
fn names(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE shoal_cluster_"));
    types.map(|rest| rest.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn a_cluster_its_run_and_its_rigs_are_scraped_through_one_port() {
    let harbour = Harbour::new("scraped");
    let _coordinator = harbour.coordinator_with(&["--metrics-port", "0"]);
    let token = harbour.token(&["--uses", "2"]);
    let _rigs = [harbour.rig("a", Some(&token)), harbour.rig("b", Some(&token))];
    harbour.apply("watched", super::STEPS, &[]);
    harbour.wait_for_step("watched", 5);
    let file = harbour.path.join("cluster/targets/cluster.json");
    let groups: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let address = groups[0]["targets"][0].as_str().unwrap().to_owned();

    let (_, own) = get(&address, "/metrics");
    for wanted in [
        "shoal_cluster_rigs{state=\"busy\"} 2",
        "shoal_cluster_rig_up{rig=\"a\"} 1",
        "shoal_cluster_jobs{phase=\"running\"} 1",
        "shoal_cluster_launches_total 1",
        "shoal_cluster_enrolments_total 2",
        "shoal_cluster_store_failures_total 0",
        "process_resident_memory_bytes",
    ] {
        assert!(own.contains(wanted), "{wanted} in\n{own}");
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = fs::read_to_string(page).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `shoal_cluster_"));
    let documented: BTreeSet<String> =
        rows.map(|row| row.split('`').next().unwrap().to_owned()).collect();
    assert_eq!(names(&own), documented);

    let list = || -> Value { serde_json::from_str(&get(&address, "/sd").1).unwrap() };
    wait("the run's processes in the list", || list().as_array().unwrap().len() == 4);
    for group in list().as_array().unwrap() {
        assert_eq!(group["targets"][0], address.as_str());
        let labels = &group["labels"];
        let path = labels["__metrics_path__"].as_str().unwrap();
        // A worker says where its metrics are in its first moments.
        wait(path, || get(&address, path).0 == 200);
        let text = get(&address, path).1;
        let wanted = match (labels["process"].as_str().unwrap(), labels["rig"].as_str()) {
            ("cluster", None) => "shoal_cluster_info{name=\"shoal\"} 1".to_owned(),
            ("coordinator", None) => "shoal_steps_target".to_owned(),
            (worker, Some("a" | "b")) => {
                let number = worker.strip_prefix("worker-").unwrap();
                format!("worker=\"{number}\"")
            }
            other => panic!("{other:?}"),
        };
        assert!(text.contains(&wanted), "{wanted} in\n{text}");
    }
    for nowhere in ["/rigs/c/metrics", "/jobs/other/metrics", "/jobs/..%2f..%2fcluster/metrics"] {
        assert_eq!(get(&address, nowhere).0, 404, "{nowhere}");
    }

    let shown = harbour.ok(&["top", "--once"]);
    for wanted in
        ["cluster shoal: 2 rigs, 1 job", "watched: training", "stages x shards: 2x2x1", "busiest"]
    {
        assert!(shown.contains(wanted), "{wanted} in\n{shown}");
    }
    // Bytes went over the links of both rigs, wherever these are.
    let links = shown.split("links").nth(1).unwrap();
    assert!(links.contains("sent") && !links.contains("no worker's metrics"), "{shown}");
}
