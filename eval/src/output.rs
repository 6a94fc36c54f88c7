//! Answers as safetensors: written beside their final name, synced, and renamed.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use shoal_weights::{CheckpointError, NamedTensor, StoredType, write_file};

use crate::EvalError;

/// A tensor for a file, FP32.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub values: &'a [f32],
}

/// Whether `path` may be written: its directory is there, and it is not or may be replaced. To be
/// asked before the work is done.
pub fn check(path: &Path, force: bool) -> Result<(), EvalError> {
    let wrong = |what: &str| {
        Err(EvalError::Input { path: path.into(), at: String::new(), what: what.into() })
    };
    if path.file_name().is_none() || path.is_dir() {
        return wrong("want the name of a file");
    }
    if path.exists() && !force {
        return wrong("it is there already: --force replaces it");
    }
    if !directory(path).is_dir() {
        return wrong("there is no such directory");
    }
    Ok(())
}

impl Output<'_> {
    /// Writes a file of these tensors; a crash leaves what was there before.
    pub fn write(path: &Path, tensors: &[Output<'_>]) -> Result<(), EvalError> {
        let aside = format!("shoal-{}.partial", std::process::id());
        let mut tensors = tensors.iter().map(|tensor| NamedTensor {
            name: tensor.name,
            shape: tensor.shape.to_vec(),
            dtype: StoredType::F32,
            bytes: Cow::Borrowed(bytemuck::cast_slice(tensor.values)),
        });
        let (directory, io) = (directory(path), |action| {
            move |source| CheckpointError::Io { action, path: path.into(), source }
        });
        let partial = directory.join(&aside);
        let written = write_file(directory, &aside, &mut tensors)
            .and_then(|_| fs::rename(&partial, path).map_err(io("writing")));
        if written.is_err() {
            // It may never have been made.
            drop(fs::remove_file(&partial));
        }
        Ok(written?)
    }
}

fn directory(path: &Path) -> &Path {
    let parent = path.parent().unwrap_or(Path::new("."));
    if parent.as_os_str().is_empty() { Path::new(".") } else { parent }
}
