//! Where secrets may be found while a job trains: in files of their user alone, and nowhere else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::harbour::Harbour;

/// Files that may hold one.
const MAY: [&str; 5] = ["key.pem", "ca.key", "cluster.redb", "control.json", "token"];

/// All files below a directory.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

fn holds(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

/// What every process of this machine shows of itself to others: words and environment.
fn shown_by_processes() -> Vec<u8> {
    let mut shown = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for name in ["cmdline", "environ"] {
            shown.extend(fs::read(entry.path().join(name)).unwrap_or_default());
        }
    }
    shown
}

#[test]
fn secrets_are_in_files_of_their_user_alone_and_in_nothing_that_is_said_or_shown() {
    let harbour = Harbour::new("secrets");
    let _coordinator = harbour.coordinator();
    let token_file = harbour.token(&["--uses", "2"]);
    let token = fs::read_to_string(&token_file).unwrap();
    let _rigs = [harbour.rig("a", Some(&token_file)), harbour.rig("b", Some(&token_file))];
    harbour.apply("small", 100_000, &[]);
    harbour.wait_for_step("small", 3);
    let control = fs::read_to_string(harbour.run_dir("small").join("control.json")).unwrap();
    let control: serde_json::Value = serde_json::from_str(&control).unwrap();
    let run_secret = control["secret"].as_str().unwrap().to_owned();
    assert!(run_secret.len() >= 32);
    let token_secret = token.trim().rsplit('.').next().unwrap().to_owned();
    let secrets = [run_secret, token_secret, "PRIVATE KEY-----".to_owned()];

    let mut said = String::new();
    let asked: [&[&str]; 7] = [
        &["ps"],
        &["ps", "-o", "json"],
        &["status", "small", "-o", "json"],
        &["token", "ls"],
        &["logs", "small"],
        &["logs", "small", "--log", "coordinator"],
        &["logs", "small", "--log", "worker-1"],
    ];
    for args in asked {
        let (_, out, err) = harbour.run(args);
        said.push_str(&out);
        said.push_str(&err);
    }
    assert!(said.contains("small"), "{said}");
    let shown = shown_by_processes();
    assert!(holds(&shown, "--token-file"), "processes of the test are among them");
    for secret in &secrets {
        assert!(!holds(said.as_bytes(), secret), "a secret was said");
        assert!(!holds(&shown, secret), "a secret is shown by /proc");
    }

    let mut found = Vec::new();
    files(&harbour.path, &mut found);
    let mut kept = 0;
    for path in found {
        // A file may be put in its place at any moment.
        let Ok(bytes) = fs::read(&path) else { continue };
        if !secrets.iter().any(|secret| holds(&bytes, secret)) {
            continue;
        }
        kept += 1;
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(MAY.iter().any(|may| name.starts_with(may)), "{} holds a secret", path.display());
        // The token's file is the test's own.
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert!(
            name.starts_with("token") || mode.trailing_zeros() >= 6,
            "{}: {mode:o}",
            path.display()
        );
    }
    assert!(kept >= 4, "keys of two rigs, the authority's, and the run's: {kept}");
}
