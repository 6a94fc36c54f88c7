//! Every step of training reads the same windows of the same shards, so settings and files that
//! changed since are refused: the sample order would not be the one that was trained.

use std::path::{Path, PathBuf};

use super::{FILE_NAME, FileRecord, Record};
use crate::error::DataError;
use crate::files::{SourceFile, look_at};
use crate::read::hash_start;
use crate::settings::{Settings, TokenizerChoice};

/// Told the name of a source or set, the bytes checked and the bytes in all.
type Told<'a> = &'a mut dyn FnMut(&str, u64, u64);

impl Record {
    /// Refuses settings other than those the shards were made with.
    pub(crate) fn compare_settings(
        &self,
        settings: &Settings,
        dir: &Path,
    ) -> Result<(), DataError> {
        match self.difference(settings) {
            Some(what) => Err(DataError::Changed { path: dir.join(FILE_NAME), what }),
            None => Ok(()),
        }
    }

    fn difference(&self, settings: &Settings) -> Option<String> {
        let changed = |name: &str, is: String, was: String| {
            (is != was).then(|| format!("{name} is {is}, was {was}"))
        };
        let names = |settings: &Settings| -> Vec<String> {
            settings.sources.iter().map(|source| source.name.clone()).collect()
        };
        let own_names: Vec<String> =
            self.sources.iter().map(|source| source.name.clone()).collect();
        let choice = |choice: &TokenizerChoice| match choice {
            TokenizerChoice::Bytes => "bytes".to_owned(),
            TokenizerChoice::Bpe { vocab_size } => format!("bpe of {vocab_size}"),
            // Wherever it lies: its content is compared.
            TokenizerChoice::File(_) => "a file".to_owned(),
        };
        let sets = |names: Vec<&String>| format!("{names:?}");
        changed("bytes_max", settings.bytes_max.to_string(), self.bytes_max.to_string())
            .or_else(|| {
                let (is, was) = (settings.heldout_fraction, self.heldout_fraction);
                changed("heldout_fraction", is.to_string(), was.to_string())
            })
            .or_else(|| {
                changed("sequence", settings.sequence.to_string(), self.sequence.to_string())
            })
            .or_else(|| {
                changed("tokenizer", choice(&settings.tokenizer), choice(&self.tokenizer.choice))
            })
            .or_else(|| changed("sources", names(settings).join(", "), own_names.join(", ")))
            .or_else(|| {
                self.sources.iter().zip(&settings.sources).find_map(|(was, is)| {
                    let name = format!("the weight of {:?}", is.name);
                    let weight = changed(&name, is.weight.to_string(), was.weight.to_string());
                    let name = format!("the field of {:?}", is.name);
                    weight.or_else(|| changed(&name, is.field.clone(), was.field.clone()))
                })
            })
            .or_else(|| {
                let (is, was) = (settings.eval_sets.keys(), self.eval_sets.keys());
                changed("eval_sets", sets(is.collect()), sets(was.collect()))
            })
    }

    /// Refuses other files than those that were read, and names the first. What comes back is the
    /// record with the files' present times, if any of them was written anew with the same
    /// content.
    pub(crate) fn compare_files(
        &self,
        settings: &Settings,
        told: Told<'_>,
    ) -> Result<Option<Self>, DataError> {
        let mut now = self.clone();
        for (source, listed) in now.sources.iter_mut().zip(&settings.sources) {
            let mut told = |done, all| told(&listed.name, done, all);
            compare_list(&mut source.set.files, source.cut, &listed.files, &mut told)?;
        }
        for ((name, set), listed) in now.eval_sets.iter_mut().zip(settings.eval_sets.values()) {
            compare_list(&mut set.files, false, listed, &mut |done, all| told(name, done, all))?;
        }
        Ok((now != *self).then_some(now))
    }
}

fn changed(path: &Path, what: impl Into<String>) -> Result<(), DataError> {
    Err(DataError::Changed { path: path.to_path_buf(), what: what.into() })
}

fn compare_list(
    recorded: &mut [FileRecord],
    cut: bool,
    listed: &[PathBuf],
    told: &mut dyn FnMut(u64, u64),
) -> Result<(), DataError> {
    compare_names(recorded, cut, listed)?;
    let all = recorded.iter().map(|file| file.bytes_read).sum();
    let mut done = 0;
    for file in recorded {
        compare_file(file, &mut |bytes| told(done + bytes, all))?;
        done += file.bytes_read;
    }
    Ok(())
}

fn compare_names(recorded: &[FileRecord], cut: bool, listed: &[PathBuf]) -> Result<(), DataError> {
    for at in 0..recorded.len().max(if cut { 0 } else { listed.len() }) {
        match (recorded.get(at), listed.get(at)) {
            (Some(file), Some(path)) if file.path == *path => {}
            (Some(file), _) if !listed.contains(&file.path) => {
                return changed(&file.path, "it is no longer among the files");
            }
            (_, Some(path)) => {
                let was = recorded.iter().position(|file| file.path == *path);
                let what = was.map_or("it was not among the files".into(), |was| {
                    format!("it is file {} in order, was {}", at + 1, was + 1)
                });
                return changed(path, what);
            }
            (_, None) => {}
        }
    }
    Ok(())
}

/// Refuses another size or another content; takes over another time.
fn compare_file(file: &mut FileRecord, told: &mut dyn FnMut(u64)) -> Result<(), DataError> {
    let SourceFile { bytes, modified_ns, .. } = look_at(&file.path)?;
    if bytes != file.bytes {
        return changed(&file.path, format!("it has {bytes} bytes, was {}", file.bytes));
    }
    if modified_ns != file.modified_ns {
        let (_, hash) = hash_start(&file.path, file.bytes_read, told)?;
        if hash.to_hex().as_str() != file.blake3 {
            return changed(&file.path, "its content");
        }
        file.modified_ns = modified_ns;
    }
    Ok(())
}
