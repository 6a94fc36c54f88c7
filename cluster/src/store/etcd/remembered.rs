//! Which etcd it was, and how far it had come: one that was wiped, restored from an old copy, or is another one must
//! not be taken for it, since terms and revisions would begin anew.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::store::StoreError;

/// In the state directory.
const FILE: &str = "etcd.json";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    /// Of etcd's own cluster.
    pub(super) id: u64,
    pub(super) revision: i64,
}

#[derive(Debug)]
pub(super) struct Remembered {
    path: PathBuf,
    known: Option<Known>,
}

impl Remembered {
    pub(super) fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(FILE);
        let known = match fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).map_err(|error| {
                let what = format!("{} is damaged ({error})", path.display());
                StoreError::Unfit(format!("{what}: remove it, if etcd is the one that it was"))
            })?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(StoreError::Unfit(format!("{}: {error}", path.display()))),
        };
        Ok(Self { path, known })
    }

    /// Holds what etcd says of itself against what it said before.
    ///
    /// # Errors
    /// It is not the one that it was, in a sentence that says what to do.
    pub(super) fn holds(&self, now: Known) -> Result<(), String> {
        let Some(known) = self.known else { return Ok(()) };
        let mend = format!(
            "Point --store at the etcd that it was, or restore its newest copy. If its loss is meant, remove {}: the \
             cluster begins anew, and every rig joins anew with a token",
            self.path.display()
        );
        if known.id != now.id {
            return Err(format!(
                "this is another etcd (cluster {:x}) than the one that was known (cluster {:x}). {mend}",
                now.id, known.id
            ));
        }
        if now.revision < known.revision {
            return Err(format!(
                "etcd went back: it is at revision {}, and was at {}: it was wiped, or restored from an old copy. {mend}",
                now.revision, known.revision
            ));
        }
        Ok(())
    }

    /// Keeps what etcd says of itself, whole or not at all.
    pub(super) fn keep(&mut self, now: Known) -> Result<(), String> {
        if self.known.is_some_and(|known| known.id == now.id && known.revision >= now.revision) {
            return Ok(());
        }
        let text = serde_json::to_vec(&now).map_err(|error| error.to_string())?;
        let aside = self.path.with_extension("new");
        let written = fs::write(&aside, text).and_then(|()| fs::rename(&aside, &self.path));
        written.map_err(|error| format!("{}: {error}", self.path.display()))?;
        self.known = Some(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etcd_that_is_another_one_or_went_back_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let mut remembered = Remembered::open(directory.path()).unwrap();
        remembered.holds(Known { id: 7, revision: 1 }).unwrap();
        remembered.keep(Known { id: 7, revision: 90 }).unwrap();
        remembered.keep(Known { id: 7, revision: 80 }).unwrap();
        let again = Remembered::open(directory.path()).unwrap();
        again.holds(Known { id: 7, revision: 90 }).unwrap();
        let other = again.holds(Known { id: 8, revision: 95 }).unwrap_err();
        assert!(other.contains("another etcd (cluster 8) than"), "{other}");
        let back = again.holds(Known { id: 7, revision: 89 }).unwrap_err();
        assert!(back.contains("at revision 89, and was at 90"), "{back}");
        for said in [other, back] {
            assert!(said.contains("etcd.json: the cluster begins anew"), "{said}");
        }
        fs::write(directory.path().join(FILE), "{").unwrap();
        let damaged = Remembered::open(directory.path()).unwrap_err().to_string();
        assert!(damaged.contains("etcd.json is damaged"), "{damaged}");
    }
}
