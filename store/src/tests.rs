//! Against the crate's own backends, in memory and on a disk, with every request failing in turn:
//! before it is done, and after, when only the answer is lost.

mod faulty;
mod mirroring;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use shoal_plan::checkpoint::{
    CheckpointFile, CheckpointManifest, FILE_NAME, Keep, SCHEMA_VERSION, complete_name,
};
use shoal_plan::grid::Grid;
use shoal_plan::standing::Standing;
use tempfile::TempDir;

use crate::{Error, Store, Upload};
use faulty::{Faulty, When};

/// A few bytes that no other file has.
fn content(step: u64, name: &str) -> Vec<u8> {
    // One file fits in a part, the other needs several.
    let n = if name.starts_with('m') { 3 * 64 + 7 } else { 20 };
    let seed = blake3::hash(format!("{step} {name}").as_bytes());
    seed.as_bytes().iter().copied().cycle().take(n).collect()
}

const NAMES: [&str; 3] = ["config.json", "master-cell-0.safetensors", "model-cell-0.safetensors"];

/// Writes a complete checkpoint into `checkpoints`. Of another `version` it has other numbers.
fn write(checkpoints: &Path, step: u64, version: u64) -> CheckpointManifest {
    let directory = checkpoints.join(complete_name(step));
    fs::create_dir_all(&directory).unwrap();
    let file = |name: &&str| {
        let bytes = content(step + 1000 * version, name);
        fs::write(directory.join(name), &bytes).unwrap();
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        CheckpointFile { name: (*name).to_owned(), bytes: bytes.len() as u64, blake3 }
    };
    let manifest = CheckpointManifest {
        schema_version: SCHEMA_VERSION,
        standing: Standing { step, sequences: 8 * step, ..Standing::default() },
        grid: Grid::ONE,
        files: NAMES.iter().map(file).collect(),
    };
    fs::write(directory.join(FILE_NAME), manifest.to_text()).unwrap();
    manifest
}

fn over(objects: Arc<dyn ObjectStore>) -> Store {
    Store::over(objects, Key::from("runs/a"), "test://runs/a".to_owned())
}

/// Every object below the store's prefix, with its bytes.
async fn all(store: &Store) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut listed = store.objects.list(Some(&store.prefix));
    while let Some(object) = tokio_stream::StreamExt::next(&mut listed).await {
        let key = object.unwrap().location;
        let bytes = store.objects.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
        all.push((key.to_string().strip_prefix("runs/a/").unwrap().to_owned(), bytes));
    }
    all.sort();
    all
}

/// Fetches a step and compares every byte.
async fn is_whole(store: &Store, want: &CheckpointManifest, checkpoints: &Path) {
    let step = want.standing.step;
    let scratch = TempDir::new().unwrap();
    let manifest = store.manifest(step).await.unwrap();
    assert_eq!(&manifest, want);
    let mut bytes = 0;
    store.fetch(&manifest, scratch.path(), &mut |n| bytes += n).await.unwrap();
    assert_eq!(bytes, manifest.files.iter().map(|file| file.bytes).sum::<u64>());
    for name in NAMES {
        let original = fs::read(checkpoints.join(complete_name(step)).join(name)).unwrap();
        assert_eq!(fs::read(scratch.path().join(name)).unwrap(), original, "{name}");
    }
}

#[tokio::test]
async fn what_is_sent_is_fetched_from_memory_and_from_a_disk() {
    let (disk, scratch) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let local = LocalFileSystem::new_with_prefix(disk.path()).unwrap().with_fsync(true);
    for objects in [Arc::new(InMemory::new()) as Arc<dyn ObjectStore>, Arc::new(local)] {
        let store = over(objects);
        let mut manifests = Vec::new();
        for step in [10, 20, 30] {
            manifests.push(write(scratch.path(), step, 0));
            let mut upload = Upload::of(scratch.path(), manifests.last().unwrap().clone());
            upload.run(&store).await.unwrap();
        }
        assert_eq!(store.steps().await.unwrap(), [30, 20, 10]);
        for manifest in &manifests {
            is_whole(&store, manifest, scratch.path()).await;
        }
        store.prune(30, Keep { newest: 1, best: true }, Some(10)).await.unwrap();
        assert_eq!(store.steps().await.unwrap(), [30, 10]);
        // Another run's things, and a person's.
        store.objects.put(&Key::from("runs/a/notes.txt"), "mine".into()).await.unwrap();
        store.objects.put(&Key::from("runs/b/step-5/manifest.json"), "b".into()).await.unwrap();
        assert_eq!(store.claim("ours").await.unwrap(), None);
        assert_eq!(store.claim("ours, too").await.unwrap().as_deref(), Some(&b"ours"[..]));
        store.record("changed").await.unwrap();
        assert_eq!(store.claim("x").await.unwrap().as_deref(), Some(&b"changed"[..]));
        store.clear().await.unwrap();
        assert_eq!(all(&store).await, [("notes.txt".to_owned(), b"mine".to_vec())]);
        store.objects.head(&Key::from("runs/b/step-5/manifest.json")).await.unwrap();
    }
}

/// Every request of an upload fails once, before or after it is done, and the upload is tried again.
/// Meanwhile the step is complete or not there, and in the end it is whole.
#[tokio::test]
async fn an_upload_comes_through_whatever_fails_and_is_never_seen_half() {
    let scratch = TempDir::new().unwrap();
    let (old, manifest) = (write(scratch.path(), 20, 1), write(scratch.path(), 20, 0));
    // Into nothing, and in the place of another checkpoint of the step.
    for replaces in [false, true] {
        for when in [When::Before, When::After] {
            let (mut at, mut failed) = (0, true);
            while failed {
                let faulty = Arc::new(Faulty::over(InMemory::new()));
                let store = over(Arc::clone(&faulty) as Arc<dyn ObjectStore>);
                if replaces {
                    write(scratch.path(), 20, 1);
                    Upload::of(scratch.path(), old.clone()).run(&store).await.unwrap();
                    write(scratch.path(), 20, 0);
                }
                faulty.fail_at(at, when);
                let mut upload = Upload::of(scratch.path(), manifest.clone());
                let first = upload.run(&store).await;
                failed = faulty.has_failed();
                faulty.heal();
                let seen = store.steps().await.unwrap();
                if let Err(error) = first {
                    assert!(failed, "{error}");
                    // What counts as complete is, and is the old or the new one.
                    if !seen.is_empty() {
                        let there = store.manifest(20).await.unwrap();
                        assert!(there == manifest || (replaces && there == old), "request {at}");
                        if there == manifest {
                            is_whole(&store, &manifest, scratch.path()).await;
                        }
                    }
                    // The same upload tries again, or that of a process which knows nothing of it.
                    if at % 2 == 0 {
                        upload.run(&store).await.unwrap();
                    } else {
                        Upload::of(scratch.path(), manifest.clone()).run(&store).await.unwrap();
                    }
                }
                is_whole(&store, &manifest, scratch.path()).await;
                at += 1;
            }
            assert!(at > 8, "only {at} requests were swept");
        }
    }
}

#[tokio::test]
async fn two_runs_in_one_place_are_told_apart() {
    let scratch = TempDir::new().unwrap();
    let store = over(Arc::new(InMemory::new()));
    let (old, new) = (write(scratch.path(), 20, 1), write(scratch.path(), 20, 0));
    let mut upload = Upload::of(scratch.path(), new);
    upload.run(&store).await.unwrap();
    // Meanwhile the other one has replaced it.
    let key = Key::from("runs/a/step-20/manifest.json");
    store.objects.put(&key, old.to_text().into()).await.unwrap();
    let error = upload.run(&store).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { step: 20, .. }), "{error}");
    assert!(error.to_string().contains("give each run a prefix of its own"), "{error}");
}

#[tokio::test]
async fn what_is_not_as_it_was_written_is_neither_sent_nor_taken() {
    let scratch = TempDir::new().unwrap();
    let manifest = write(scratch.path(), 20, 0);
    for name in NAMES {
        let path = scratch.path().join("step-20").join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[5] ^= 1;
        fs::write(&path, &bad).unwrap();
        let store = over(Arc::new(InMemory::new()));
        let error = Upload::of(scratch.path(), manifest.clone()).run(&store).await.unwrap_err();
        assert!(matches!(error, Error::NotAsWritten { .. }), "{error}");
        assert!(error.to_string().contains(name) && store.steps().await.unwrap().is_empty());
        fs::write(&path, &good).unwrap();
        Upload::of(scratch.path(), manifest.clone()).run(&store).await.unwrap();
        // In the store: changed, cut short, gone.
        let key = Key::from(format!("runs/a/step-20/{name}"));
        for damage in [Some(bad.clone()), Some(good[1..].to_vec()), None] {
            match damage.clone() {
                Some(bytes) => drop(store.objects.put(&key, bytes.into()).await.unwrap()),
                None => store.objects.delete(&key).await.unwrap(),
            }
            let target = TempDir::new().unwrap();
            let fetched = store.fetch(&manifest, target.path(), &mut |_| {}).await;
            let error = fetched.unwrap_err();
            assert!(error.is_damage() && error.to_string().contains(name), "{error}");
            if damage.is_some() {
                let hashes = ["blake3", &manifest.files[0].blake3[..0], "the manifest says"];
                assert!(hashes.iter().all(|want| error.to_string().contains(want)), "{error}");
            }
        }
    }
    let store = over(Arc::new(InMemory::new()));
    let key = Key::from("runs/a/step-20/manifest.json");
    let mut escaping = manifest.clone();
    escaping.files[0].name = "../../x".into();
    let text = manifest.to_text();
    for (bad, want) in [
        (text.replace("\"step\": 20", "\"step\": 21"), "blake3 does not match"),
        (text[..text.len() - 2].to_owned(), "is damaged"),
        (write(scratch.path(), 21, 0).to_text(), "it is of step 21"),
        (escaping.to_text(), "no plain file name"),
    ] {
        store.objects.put(&key, bad.into()).await.unwrap();
        let error = store.manifest(20).await.unwrap_err();
        assert!(error.is_damage() && error.to_string().contains(want), "{error}: want {want}");
    }
}

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

#[tokio::test]
async fn a_store_that_cannot_be_used_says_what_to_do() {
    use shoal_plan::store::StoreAddress;
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "x").unwrap();
    let keys = |name: &str| name.starts_with("AWS_").then(|| "hunter2".to_owned());
    let nobody = |name: &str| match name {
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("hunter2".to_owned()),
        // Nothing listens on the port for discarding what comes.
        "AWS_ENDPOINT_URL" => Some("http://127.0.0.1:9".to_owned()),
        _ => None,
    };
    let s3 = "s3://bucket/prefix";
    let none = |_: &str| None;
    let cases: [(&str, Environment<'_>, &str); 4] = [
        (s3, &none, "AWS_ACCESS_KEY_ID is not set"),
        (s3, &keys, "AWS_ENDPOINT_URL is \"hunter2\""),
        (s3, &nobody, "cannot be reached"),
        (file.to_str().unwrap(), &none, "choose a directory that can be written to"),
    ];
    for (address, environment, want) in cases {
        let address = StoreAddress::parse(address).unwrap();
        let error = crate::open(&address, environment).await.unwrap_err();
        assert!(error.to_string().contains(want), "{error}: want {want}");
        assert_eq!(error.is_about_input(), want != "cannot be reached", "{error}");
        if want == "cannot be reached" {
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
