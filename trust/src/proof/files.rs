//! Keys and certificates on disk: what is refused, in which words, and that nothing is lost.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

#[test]
fn an_authority_survives_the_disk_and_is_made_once() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("cluster/ca");
    let ca = authority();
    ca.save(&dir).unwrap();
    assert_eq!(names(&dir), ["ca.key", "ca.pem"]);
    assert_eq!((mode(&dir), mode(&dir.join("ca.key"))), (0o700, 0o600));
    let again = Authority::open(&dir).unwrap();
    assert_eq!((again.pin(), again.certificate_pem()), (ca.pin(), ca.certificate_pem()));
    assert_eq!(Pin::of_pem(ca.certificate_pem()).unwrap(), ca.pin());
    // What the second signs, members of the first believe.
    let server = member(&again, Role::Coordinator, "head");
    let client = member(&ca, Role::Worker, "a");
    dial(&client, server.identity(), required(&server)).unwrap();
    let error = authority().save(&dir).unwrap_err();
    assert!(matches!(error, TrustError::Exists { .. }), "{error}");
    assert_eq!(names(&dir), ["ca.key", "ca.pem"]);
    assert_eq!(Authority::open(&dir).unwrap().pin(), ca.pin());
}

#[test]
fn credentials_survive_the_disk_and_are_renewed_in_place() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let ca = authority();
    let mut serials = Vec::new();
    for _ in 0..3 {
        let credentials = member(&ca, Role::Worker, "a");
        credentials.save(dir).unwrap();
        assert_eq!(names(dir), ["ca.pem", "certificate.pem", "key.pem"]);
        assert_eq!(mode(&dir.join("key.pem")), 0o600);
        let again = Credentials::open(dir).unwrap();
        assert_eq!(again.identity(), credentials.identity());
        assert_eq!((again.serial(), again.pin()), (credentials.serial(), ca.pin()));
        dial(&again, &who(Role::Worker, "a"), required(&credentials)).unwrap();
        serials.push(again.serial().to_owned());
    }
    serials.dedup();
    assert_eq!(serials.len(), 3);
}

type Opens = fn(&Path) -> Result<(), TrustError>;

#[test]
fn a_key_that_others_may_read_is_refused_with_what_mends_it() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let ca = authority();
    ca.save(dir).unwrap();
    member(&ca, Role::Worker, "a").save(dir).unwrap();
    let opens: [(&str, Opens); 2] = [
        ("ca.key", |dir| Authority::open(dir).map(drop)),
        ("key.pem", |dir| Credentials::open(dir).map(drop)),
    ];
    for (file, open) in opens {
        let path = dir.join(file);
        for wrong in [0o644, 0o640, 0o604, 0o620, 0o601] {
            set_mode(&path, wrong);
            let error = open(dir).unwrap_err().to_string();
            let mend = format!("(mode {wrong:04o}): run `chmod 600 {}`", path.display());
            assert!(error.contains(&mend), "{error}");
            assert!(refuse_if_others_may_read(&path).is_err());
        }
        for right in [0o600, 0o400] {
            set_mode(&path, right);
            open(dir).unwrap();
            refuse_if_others_may_read(&path).unwrap();
        }
        let elsewhere = dir.join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        assert!(matches!(open(dir), Err(TrustError::File { .. })), "it is not there");
        symlink(&elsewhere, &path).unwrap();
        let error = open(dir).unwrap_err().to_string();
        assert!(error.contains("is a symbolic link: want a regular file"), "{error}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = open(dir).unwrap_err().to_string();
        assert!(error.contains("is not a file"), "{error}");
        fs::remove_dir(&path).unwrap();
        fs::rename(&elsewhere, &path).unwrap();
    }
}

#[test]
fn damaged_files_and_files_of_others_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let ca = authority();
    let whole = member(&ca, Role::Worker, "a");
    for file in ["ca.pem", "certificate.pem", "key.pem"] {
        whole.save(dir).unwrap();
        let path = dir.join(file);
        let text = fs::read_to_string(&path).unwrap();
        let cut = text[..text.len() / 2].to_owned();
        let garbled = text.replacen(&text[80..90], "!!!!!!!!!!", 1);
        let twice = if file == "key.pem" { String::new() } else { text.repeat(2) };
        for wrong in [String::new(), cut, garbled, "\0".repeat(300), "x".repeat(80_000), twice] {
            fs::write(&path, wrong).unwrap();
            let error = Credentials::open(dir).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(file), "{text}");
            let is_named = matches!(error, TrustError::Damaged { .. } | TrustError::File { .. });
            assert!(is_named, "{text}");
        }
    }
    // Each whole, but not of one another.
    let stranger = tempfile::tempdir().unwrap();
    member(&authority(), Role::Worker, "a").save(stranger.path()).unwrap();
    for file in ["ca.pem", "certificate.pem", "key.pem"] {
        whole.save(dir).unwrap();
        fs::copy(stranger.path().join(file), dir.join(file)).unwrap();
        let error = Credentials::open(dir).unwrap_err();
        assert!(matches!(error, TrustError::Mismatch { .. }), "{file}: {error}");
    }
    ca.save(&dir.join("ca")).unwrap();
    fs::copy(stranger.path().join("ca.pem"), dir.join("ca/ca.pem")).unwrap();
    let error = Authority::open(&dir.join("ca")).unwrap_err();
    assert!(matches!(error, TrustError::Mismatch { .. }), "{error}");
}
