//! What is in the store, whose it is, and what goes.

use std::collections::{BTreeMap, BTreeSet};

use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutMode};
use shoal_plan::checkpoint::{FILE_NAME, Keep, Named};
use tokio_stream::StreamExt;

use crate::error::Error;
use crate::{RUN_FILE_NAME, Store};

/// Keys of one step.
#[derive(Debug, Default)]
struct Objects {
    manifest: Option<Key>,
    files: Vec<Key>,
}

impl Store {
    /// Steps that are complete, the newest first.
    pub async fn steps(&self) -> Result<Vec<u64>, Error> {
        let all = self.objects_by_step().await?;
        let complete = all.iter().rev().filter(|(_, objects)| objects.manifest.is_some());
        Ok(complete.map(|(step, _)| *step).collect())
    }

    /// Deletes complete steps up to `newest` that are not to keep, and what is left of others that
    /// are older.
    pub async fn prune(&self, newest: u64, keep: Keep, best: Option<u64>) -> Result<(), Error> {
        let all = self.objects_by_step().await?;
        let until = all.range(..=newest);
        let complete: Vec<u64> = until
            .filter(|(_, objects)| objects.manifest.is_some())
            .map(|(step, _)| *step)
            .collect();
        let gone: BTreeSet<u64> = keep.gone(&complete, best).into_iter().collect();
        for (step, objects) in all.range(..newest) {
            if gone.contains(step) || objects.manifest.is_none() {
                self.delete_step(objects).await?;
            }
        }
        Ok(())
    }

    /// A step that is damaged no longer counts: its manifest goes, its files when they are replaced
    /// or too old.
    pub async fn forget(&self, step: u64) -> Result<(), Error> {
        self.delete(&self.manifest_key(step)).await
    }

    /// Deletes all that a run wrote here, and nothing else: for a run that starts over.
    pub async fn clear(&self) -> Result<(), Error> {
        for objects in self.objects_by_step().await?.values() {
            self.delete_step(objects).await?;
        }
        self.delete(&self.run_key()).await
    }

    /// The record of the run that the store belongs to; `ours` is written where there is none.
    pub async fn claim(&self, ours: &str) -> Result<Option<Vec<u8>>, Error> {
        let key = self.run_key();
        if let Some(theirs) = self.text(&key).await? {
            return Ok(Some(theirs));
        }
        let put = self.objects.put_opts(&key, ours.to_owned().into(), PutMode::Create.into()).await;
        match put {
            Ok(_) => Ok(None),
            // Somebody was faster, or it was us and the answer was lost.
            Err(error) => match self.text(&key).await? {
                Some(there) if there == ours.as_bytes() => Ok(None),
                Some(theirs) => Ok(Some(theirs)),
                None => Err(self.failed("writing", &key)(error)),
            },
        }
    }

    /// Replaces the record of the run.
    pub async fn record(&self, ours: &str) -> Result<(), Error> {
        let key = self.run_key();
        let put = self.objects.put(&key, ours.to_owned().into()).await;
        put.map(|_| ()).map_err(self.failed("writing", &key))
    }

    /// Without its manifest a step no longer counts, however far the rest gets.
    async fn delete_step(&self, objects: &Objects) -> Result<(), Error> {
        for key in objects.manifest.iter().chain(&objects.files) {
            self.delete(key).await?;
        }
        Ok(())
    }

    /// Deletes an object, which need not be there.
    pub(crate) async fn delete(&self, key: &Key) -> Result<(), Error> {
        match self.objects.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("deleting", key)(error)),
        }
    }

    /// All keys of the form `step-N/FILE`.
    async fn objects_by_step(&self) -> Result<BTreeMap<u64, Objects>, Error> {
        let mut all: BTreeMap<u64, Objects> = BTreeMap::new();
        let mut listed = self.objects.list(Some(&self.prefix));
        while let Some(object) = listed.next().await {
            let key = object.map_err(self.failed("listing", &self.prefix))?.location;
            let Some(parts) = key.prefix_match(&self.prefix) else { continue };
            let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
            let [directory, file] = &parts[..] else { continue };
            let Some(Named::Complete(step)) = Named::of(directory) else { continue };
            debug_assert_ne!(file, RUN_FILE_NAME, "which stands beside the steps");
            let objects = all.entry(step).or_default();
            if file == FILE_NAME {
                objects.manifest = Some(key);
            } else {
                objects.files.push(key);
            }
        }
        Ok(all)
    }
}
