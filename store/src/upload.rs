//! One checkpoint into the store: its files in any order, the manifest last.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object_store::{MultipartUpload, ObjectStoreExt, PutMode, PutPayload};
use shoal_plan::checkpoint::{CheckpointFile, CheckpointManifest, complete_name};

use crate::error::Error;
use crate::{PART_BYTES, Store};

/// A checkpoint on its way. Trying again sends what is missing.
#[derive(Debug)]
pub struct Upload {
    directory: PathBuf,
    manifest: CheckpointManifest,
    sent: BTreeSet<String>,
    /// So far, of files.
    pub bytes: u64,
}

/// A file that is read in parts and hashed on the way.
struct Source {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Upload {
    /// Of the complete checkpoint in `checkpoints/step-N`.
    pub fn of(checkpoints: &Path, manifest: CheckpointManifest) -> Self {
        let directory = checkpoints.join(complete_name(manifest.standing.step));
        Self { directory, manifest, sent: BTreeSet::new(), bytes: 0 }
    }

    /// The step it is of.
    pub fn step(&self) -> u64 {
        self.manifest.standing.step
    }

    /// Sends what is missing. Done when it returns `Ok`; after an error it may be called again.
    pub async fn run(&mut self, store: &Store) -> Result<(), Error> {
        let step = self.step();
        match store.manifest_text(step).await? {
            // It was complete all along: only the answer was lost.
            Some(there) if there == self.manifest.to_text().into_bytes() => return Ok(()),
            Some(_) if self.sent.is_empty() => {
                // One that the run went back behind, or could not load. It counts until its manifest
                // is gone, so that goes first.
                store.delete(&store.manifest_key(step)).await?;
            }
            Some(_) => return Err(Error::Conflict { store: store.shown.clone(), step }),
            None => {}
        }
        for file in self.manifest.files.clone() {
            if !self.sent.contains(&file.name) {
                self.send(store, &file).await?;
                self.bytes += file.bytes;
                self.sent.insert(file.name);
            }
        }
        self.complete(store).await
    }

    async fn send(&self, store: &Store, file: &CheckpointFile) -> Result<(), Error> {
        let path = self.directory.join(&file.name);
        let key = store.key(self.step(), &file.name);
        let (source, first) = read_part(&path, Source::open(&path)?).await?;
        if first.len() < PART_BYTES {
            source.check(&path, file)?;
            let put = store.objects.put(&key, PutPayload::from(first)).await;
            put.map_err(store.failed("writing", &key))?;
            return Ok(());
        }
        let multipart = store.objects.put_multipart(&key).await;
        let mut multipart = multipart.map_err(store.failed("writing", &key))?;
        let sent = send_parts(&mut *multipart, (source, first), (&path, file)).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => {
                multipart.abort().await.ok();
                Err(store.failed("writing", &key)(source))
            }
            Err(error) => {
                multipart.abort().await.ok();
                Err(error)
            }
        }
    }

    /// Writes the manifest, if there is none.
    async fn complete(&self, store: &Store) -> Result<(), Error> {
        let (step, key) = (self.step(), store.manifest_key(self.step()));
        let text = self.manifest.to_text();
        let put = store.objects.put_opts(&key, text.clone().into(), PutMode::Create.into()).await;
        let Err(error) = put else { return Ok(()) };
        // Whatever the answer was, or that there was none: what counts is what is there now.
        match store.manifest_text(step).await? {
            Some(there) if there == text.into_bytes() => Ok(()),
            Some(_) => Err(Error::Conflict { store: store.shown.clone(), step }),
            None => Err(store.failed("completing", &key)(error)),
        }
    }
}

/// The parts of a large file. The outer error is this side's, the inner the store's.
async fn send_parts(
    multipart: &mut dyn MultipartUpload,
    (mut source, mut part): (Source, Vec<u8>),
    (path, file): (&Path, &CheckpointFile),
) -> Result<object_store::Result<()>, Error> {
    while !part.is_empty() {
        if let Err(error) = multipart.put_part(PutPayload::from(part)).await {
            return Ok(Err(error));
        }
        (source, part) = read_part(path, source).await?;
    }
    source.check(path, file)?;
    Ok(multipart.complete().await.map(|_| ()))
}

/// Reads on another thread: a disk may take its time.
async fn read_part(path: &Path, source: Source) -> Result<(Source, Vec<u8>), Error> {
    let read = tokio::task::spawn_blocking(move || source.part()).await;
    let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
    read.map_err(local("reading", path))
}

impl Source {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(local("opening", path))?;
        Ok(Self { file, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    /// The next part: full, but for the last.
    fn part(mut self) -> io::Result<(Self, Vec<u8>)> {
        let mut part = Vec::new();
        (&mut self.file).take(PART_BYTES as u64).read_to_end(&mut part)?;
        self.hasher.update(&part);
        self.bytes += part.len() as u64;
        Ok((self, part))
    }

    /// Whether all that was read is what the manifest says.
    fn check(&self, path: &Path, want: &CheckpointFile) -> Result<(), Error> {
        let got = self.hasher.finalize().to_hex().to_string();
        if (self.bytes, &got) == (want.bytes, &want.blake3) {
            return Ok(());
        }
        let (path, want_bytes, want) = (path.to_path_buf(), want.bytes, want.blake3.clone());
        Err(Error::NotAsWritten { path, got_bytes: self.bytes, got, want_bytes, want })
    }
}

pub(crate) fn local(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Local { doing, path, source }
}
