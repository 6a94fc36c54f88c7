//! One checkpoint out of the store, every byte held against the hashes on the way in.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use object_store::ObjectStoreExt;
use shoal_plan::checkpoint::{CheckpointFile, CheckpointManifest, FILE_NAME, is_plain};
use tokio_stream::StreamExt;

use crate::Store;
use crate::error::Error;
use crate::upload::local;

impl Store {
    /// The manifest of a step, checked.
    ///
    /// # Errors
    /// `Damaged` for one whose text is not as it was written, or that names a file elsewhere.
    pub async fn manifest(&self, step: u64) -> Result<CheckpointManifest, Error> {
        let key = self.manifest_key(step);
        let damaged = |what: String| Error::Damaged { object: format!("{self}: {key}"), what };
        let text = self.manifest_text(step).await?;
        let text = text.ok_or_else(|| damaged("it is missing".to_owned()))?;
        let manifest =
            CheckpointManifest::from_text(&text).map_err(|error| damaged(error.to_string()))?;
        if manifest.standing.step != step {
            return Err(damaged(format!("it is of step {}", manifest.standing.step)));
        }
        if let Some(file) = manifest.files.iter().find(|file| !is_plain(&file.name)) {
            return Err(damaged(format!("{:?} is no plain file name", file.name)));
        }
        Ok(manifest)
    }

    /// Fetches the files of a checkpoint into `directory`, synced. `got` hears of every block. The
    /// manifest is not written: whoever commits the checkpoint does that.
    ///
    /// # Errors
    /// `Damaged` for a file that is not as its manifest says.
    pub async fn fetch(
        &self,
        manifest: &CheckpointManifest,
        directory: &Path,
        got: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), Error> {
        fs::create_dir_all(directory).map_err(local("making", directory))?;
        for file in &manifest.files {
            self.fetch_file(manifest.standing.step, file, directory, got).await?;
        }
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(local("syncing", directory))
    }

    async fn fetch_file(
        &self,
        step: u64,
        want: &CheckpointFile,
        directory: &Path,
        got: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), Error> {
        let (key, path) = (self.key(step, &want.name), directory.join(&want.name));
        let mut file = File::create(&path).map_err(local("creating", &path))?;
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        let answer = self.objects.get(&key).await.map_err(self.failed("reading", &key))?;
        let mut blocks = answer.into_stream();
        while let Some(block) = blocks.next().await {
            let block = block.map_err(self.failed("reading", &key))?;
            hasher.update(&block);
            bytes += block.len() as u64;
            file.write_all(&block).map_err(local("writing", &path))?;
            got(block.len() as u64);
        }
        let hash = hasher.finalize().to_hex().to_string();
        if (bytes, &hash) != (want.bytes, &want.blake3) {
            let what = format!(
                "{bytes} bytes, blake3 {hash}; the manifest says {}, blake3 {}",
                want.bytes, want.blake3
            );
            return Err(Error::Damaged { object: format!("{self}: {key}"), what });
        }
        file.sync_all().map_err(local("syncing", &path))
    }

    /// The text of a step's manifest; `None` where there is none.
    pub(crate) async fn manifest_text(&self, step: u64) -> Result<Option<Vec<u8>>, Error> {
        self.text(&self.manifest_key(step)).await
    }

    pub(crate) async fn text(
        &self,
        key: &object_store::path::Path,
    ) -> Result<Option<Vec<u8>>, Error> {
        let answer = match self.objects.get(key).await {
            Ok(answer) => answer,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.failed("reading", key)(error)),
        };
        if answer.meta.size > MANIFEST_BYTES_MAX {
            let what = format!("{} bytes are too many for a {FILE_NAME}", answer.meta.size);
            return Err(Error::Damaged { object: format!("{self}: {key}"), what });
        }
        let bytes = answer.bytes().await.map_err(self.failed("reading", key))?;
        Ok(Some(bytes.to_vec()))
    }
}

/// As of a manifest on disk.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
