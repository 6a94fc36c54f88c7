//! `shoal doctor` on rigs that are well, and on rigs that are not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::harbour::{Harbour, wait};

/// How it ended, and what it has found.
#[track_caller]
fn doctor(harbour: &Harbour, state: &str, more: &[&str]) -> (Option<i32>, Value) {
    let state = harbour.path.join(state).display().to_string();
    let args = ["doctor", "--state", &state, "-o", "json"];
    let (code, out, err) = harbour.run(&[&args, more].concat());
    let findings =
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}"));
    (code, findings)
}

fn found<'a>(findings: &'a Value, what: &str) -> &'a Value {
    let mut all = findings.as_array().unwrap().iter();
    all.find(|finding| finding["what"] == what).unwrap_or(&Value::Null)
}

/// Level, fact and what mends it.
#[track_caller]
fn of<'a>(findings: &'a Value, what: &str) -> (&'a str, &'a str, &'a str) {
    let found = found(findings, what);
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    assert!(found.is_object(), "{what} is not in {findings:#}");
    (text("level"), text("fact"), text("mend"))
}

#[track_caller]
fn hold(findings: &Value, what: &str, level: &str, word: &str, mend: &str) {
    let got = of(findings, what);
    assert!(got.0 == level && got.1.contains(word) && got.2.contains(mend), "{what}: {got:?}");
}

fn key_of(harbour: &Harbour, rig: &str) -> std::path::PathBuf {
    harbour.path.join(rig).join("certificate/key.pem")
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_healthy_rig_is_measured_to_its_coordinator_and_to_its_neighbour() {
    let harbour = Harbour::new("doc-well");
    let _coordinator = harbour.coordinator();
    let token = harbour.token(&["--uses", "2"]);
    let _rigs = [harbour.rig("a", Some(&token)), harbour.rig("b", Some(&token))];
    let (code, findings) = doctor(&harbour, "a", &[]);
    assert_eq!(code, Some(0), "{findings:#}");
    for what in [
        "cores",
        "TCP",
        "TLS",
        "version",
        "clock",
        "certificate",
        "round trip",
        "speed up",
        "speed down",
        "b",
    ] {
        let (level, fact, mend) = of(&findings, what);
        assert!(level == "ok" && mend.is_empty(), "{what}: {fact}");
    }
    hold(&findings, "certificate", "ok", "rig a", "");
    hold(&findings, "advertises", "ok", "127.0.0.1", "");
    hold(&findings, "b", "ok", "reaches this rig, too", "");
    // For people; and with nobody else there.
    let state = harbour.path.join("b").display().to_string();
    let table = harbour.ok(&["doctor", "--state", &state]);
    assert!(table.starts_with("Machine\n  ok ") && table.contains("\nOther rigs\n"), "{table}");
    assert!(harbour.ok(&["doctor", "--state", &state, "-o", "yaml"]).contains("what: \"cores\""));
}

#[test]
fn a_machine_that_never_joined_is_told_how_and_may_look_before_it_does() {
    let harbour = Harbour::new("doc-new");
    let _coordinator = harbour.coordinator();
    let (code, findings) = doctor(&harbour, "new", &[]);
    assert_eq!(code, Some(0), "{findings:#}");
    hold(&findings, "certificate", "warning", "joined no cluster", "shoal token create");
    assert!(found(&findings, "TCP").is_null());
    let (address, token) = (harbour.address(), harbour.token(&[]));
    let file = token.display().to_string();
    let (code, findings) = doctor(&harbour, "new", &["--join", &address, "--token-file", &file]);
    assert_eq!(code, Some(0), "{findings:#}");
    hold(&findings, "TLS", "ok", "", "");
    // Nothing was used up or made.
    assert!(!harbour.path.join("new").exists());
    let _rig = harbour.rig("a", Some(&token));
    // A token of another cluster.
    let other = Harbour::new("doc-other");
    let _other = other.coordinator();
    let file = other.token(&[]).display().to_string();
    let (code, findings) = doctor(&harbour, "new", &["--join", &address, "--token-file", &file]);
    assert_eq!(code, Some(1), "{findings:#}");
    hold(&findings, "TLS", "problem", "another authority", "new token");
    let (code, findings) = doctor(&harbour, "new", &["--name", "../a"]);
    assert_eq!(code, Some(1));
    hold(&findings, "name", "problem", "1 to 63 of A-Z", "--name");
}

#[test]
fn a_certificate_of_another_cluster_and_a_key_that_others_read_are_named() {
    let (harbour, other) = (Harbour::new("doc-ca"), Harbour::new("doc-cb"));
    let _coordinators = (harbour.coordinator(), other.coordinator());
    let rig = harbour.rig("a", Some(&harbour.token(&[])));
    // Beside a rig that runs, and towards the wrong coordinator.
    let (code, findings) = doctor(&harbour, "a", &["--join", &other.address()]);
    assert_eq!(code, Some(1));
    hold(&findings, "TLS", "problem", "another authority", "new token");
    hold(&findings, "TCP", "ok", "127.0.0.1", "");
    assert!(found(&findings, "round trip").is_null());
    mode(&key_of(&harbour, "a"), 0o644);
    let (code, findings) = doctor(&harbour, "a", &[]);
    assert_eq!(code, Some(1));
    let mend = format!("chmod 600 {}", key_of(&harbour, "a").display());
    hold(&findings, "certificate", "problem", "mode 0644", &mend);
    mode(&key_of(&harbour, "a"), 0o600);
    assert_eq!(doctor(&harbour, "a", &[]).0, Some(0));
    // Who was expelled hears that, and not that something is broken.
    harbour.ok(&["expel", "a", "--yes"]);
    drop(rig);
    let (code, findings) = doctor(&harbour, "a", &[]);
    assert_eq!(code, Some(1));
    hold(&findings, "TLS", "problem", "expelled", "shoal token create");
}

#[test]
fn a_certificate_that_is_over_and_a_coordinator_that_is_down_are_named() {
    let harbour = Harbour::new("doc-end");
    let coordinator = harbour.coordinator_with(&["--certificate-life", "9s"]);
    let rig = harbour.rig("a", Some(&harbour.token(&[])));
    rig.kill();
    let is_over = || of(&doctor(&harbour, "a", &[]).1, "certificate").1.contains("ended");
    wait("the certificate's end", is_over);
    let (code, findings) = doctor(&harbour, "a", &[]);
    assert_eq!(code, Some(1));
    hold(&findings, "certificate", "problem", "ended", "shoal expel a --yes");
    hold(&findings, "TLS", "problem", "by its clock it is over", "timedatectl");
    coordinator.kill();
    let (code, findings) = doctor(&harbour, "a", &[]);
    assert_eq!(code, Some(1));
    hold(&findings, "TCP", "problem", "cannot be reached", "shoal coordinator --listen");
    assert!(found(&findings, "TLS").is_null());
    let (_, findings) = doctor(&harbour, "a", &["--join", "nobody.invalid:7400"]);
    hold(&findings, "address", "problem", "leads nowhere", "getent hosts");
}
