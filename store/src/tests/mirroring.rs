//! The task: what it copies, what it deletes, and what it does about a store that is down.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use shoal_plan::checkpoint::Keep;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use super::faulty::Faulty;
use super::{is_whole, over, write};
use crate::mirror::work;
use crate::{Mirror, Said, Settings, Store};

const KEEP: Keep = Keep { newest: 2, best: false };

fn settings(store: &Store, checkpoints: &Path) -> Settings {
    let moment = Duration::from_millis(1);
    let settings = Settings::new(store.clone(), checkpoints.to_path_buf(), KEEP);
    Settings { retry_first: moment, retry_longest: moment, ..settings }
}

/// The next thing said; failures that are no news are passed over.
async fn next(said: &mut mpsc::UnboundedReceiver<Said>) -> Said {
    loop {
        match said.recv().await.expect("the task says something") {
            Said::Failed { is_news: false, .. } => {}
            what @ (Said::Failed { .. } | Said::Stored { .. }) => return what,
        }
    }
}

#[tokio::test]
async fn what_is_committed_is_copied_and_what_is_old_goes() {
    let scratch = TempDir::new().unwrap();
    let store = over(Arc::new(InMemory::new()));
    let (say, mut said) = mpsc::unbounded_channel();
    // Two are there from before; one of them is damaged, and one is newer than the run goes on from.
    for step in [10, 20, 90] {
        write(scratch.path(), step, 0);
    }
    fs::write(scratch.path().join("step-10/config.json"), "damaged").unwrap();
    let mirror = Mirror::start(settings(&store, scratch.path()), 20, say);
    let Said::Stored { step: 20, checkpoints: 1, .. } = next(&mut said).await else {
        panic!("20 alone is good and old enough")
    };
    let mut manifest = None;
    for step in [30, 40] {
        manifest = Some(write(scratch.path(), step, 0));
        mirror.committed(step);
        let stored = next(&mut said).await;
        assert!(matches!(stored, Said::Stored { step: at, .. } if at == step), "{stored:?}");
    }
    assert_eq!(store.steps().await.unwrap(), [40, 30]);
    is_whole(&store, &manifest.unwrap(), scratch.path()).await;
    mirror.finish().await;
}

#[tokio::test]
async fn a_store_that_is_down_is_told_once_and_gets_everything_when_it_is_back() {
    let scratch = TempDir::new().unwrap();
    let faulty = Arc::new(Faulty::over(InMemory::new()));
    let store = over(Arc::clone(&faulty) as Arc<dyn ObjectStore>);
    let (say, mut said) = mpsc::unbounded_channel();
    let mirror = Mirror::start(settings(&store, scratch.path()), 0, say);
    faulty.go_down();
    for step in [10, 20] {
        write(scratch.path(), step, 0);
        mirror.committed(step);
    }
    let mut failures = 0;
    let mut news = 0;
    while failures < 5 {
        if let Said::Failed { is_news, why, .. } = said.recv().await.unwrap() {
            assert!(why.contains("503 of this test"), "{why}");
            failures += 1;
            news += u32::from(is_news);
        }
    }
    assert_eq!(news, 1, "the same failure is told once");
    faulty.heal();
    let stored = next(&mut said).await;
    assert!(matches!(stored, Said::Stored { step: 20, checkpoints: 2, .. }), "{stored:?}");
    assert_eq!(store.steps().await.unwrap(), [20, 10]);
    mirror.finish().await;
}

#[tokio::test]
async fn the_end_waits_for_the_last_checkpoint_but_not_for_ever() {
    let scratch = TempDir::new().unwrap();
    let faulty = Arc::new(Faulty::over(InMemory::new()));
    let store = over(Arc::clone(&faulty) as Arc<dyn ObjectStore>);
    for works in [true, false] {
        let (say, mut said) = mpsc::unbounded_channel();
        let mirror = Mirror::start(settings(&store, scratch.path()), 0, say);
        let step = if works { 10 } else { 20 };
        write(scratch.path(), step, 0);
        if !works {
            faulty.go_down();
        }
        mirror.committed(step);
        mirror.finish().await;
        let mut last = None;
        while let Some(what) = said.recv().await {
            last = Some(what);
        }
        assert_eq!(matches!(last, Some(Said::Stored { step: 10, .. })), works, "{last:?}");
    }
    faulty.heal();
    assert_eq!(store.steps().await.unwrap(), [10]);
}

/// The newest goes while it is sent, and a newer one is there: as where the store is slower than the
/// run.
#[tokio::test]
async fn one_that_was_overtaken_is_no_failure() {
    let scratch = TempDir::new().unwrap();
    let faulty = Arc::new(Faulty::over(InMemory::new()));
    let store = over(Arc::clone(&faulty) as Arc<dyn ObjectStore>);
    let (say, mut said) = mpsc::unbounded_channel();
    write(scratch.path(), 10, 0);
    fs::remove_file(scratch.path().join("step-10/config.json")).unwrap();
    write(scratch.path(), 20, 0);
    let (committed, heard) = watch::channel(10);
    faulty.on_next_request(move || {
        committed.send_replace(20);
    });
    work(settings(&store, scratch.path()), heard, say).await;
    let stored = said.recv().await.unwrap();
    assert!(matches!(stored, Said::Stored { step: 20, checkpoints: 1, .. }), "{stored:?}");
    assert_eq!(store.steps().await.unwrap(), [20]);
}

#[tokio::test]
async fn one_that_is_deleted_on_the_way_is_no_failure() {
    let scratch = TempDir::new().unwrap();
    let store = over(Arc::new(InMemory::new()));
    let (say, mut said) = mpsc::unbounded_channel();
    write(scratch.path(), 10, 0);
    write(scratch.path(), 20, 0);
    // Its manifest is there still, its files are not: as in the midst of a deletion.
    fs::remove_file(scratch.path().join("step-10/model-cell-0.safetensors")).unwrap();
    let mirror = Mirror::start(settings(&store, scratch.path()), 20, say);
    let stored = next(&mut said).await;
    assert!(matches!(stored, Said::Stored { step: 20, checkpoints: 1, .. }), "{stored:?}");
    assert_eq!(store.steps().await.unwrap(), [20]);
    mirror.finish().await;
}
