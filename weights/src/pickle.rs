//! Pickled files are programs: they are recognised, by name and by content, and never read.

use std::fs;
use std::path::{Path, PathBuf};

use crate::CheckpointError;

/// Endings of files that PyTorch pickles.
const ENDINGS: [&str; 6] = ["bin", "pt", "pth", "pkl", "pickle", "ckpt"];

/// What the first bytes say a file is, if it is a pickle: a bare one, or the ZIP that `torch.save`
/// packs it in.
pub(crate) fn kind_of_bytes(first: [u8; 8]) -> Option<&'static str> {
    match first {
        [0x80, 2..=5, ..] if first[2..] != [0; 6] => Some("a pickle"),
        [b'P', b'K', 3, 4, ..] => Some("a PyTorch archive (a pickle in a ZIP)"),
        _ => None,
    }
}

/// The error about a file that is one.
pub(crate) fn refusal(path: &Path, kind: &str) -> CheckpointError {
    CheckpointError::NoModel {
        path: path.to_path_buf(),
        what: format!("it is {kind}, which could run any program"),
        help: "convert to safetensors: load it where you trust it, and \
               model.save_pretrained(DIR, safe_serialization=True)"
            .into(),
    }
}

/// A file in `directory` whose name is that of pickled weights.
pub(crate) fn named_so(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let is_pickle = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        ending.is_some_and(|ending| ENDINGS.contains(&ending))
    };
    files.into_iter().find(is_pickle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickles_are_told_from_headers() {
        assert!(kind_of_bytes(*b"\x80\x02}q\0(X\0").is_some());
        assert!(kind_of_bytes(*b"PK\x03\x04\0\0\x08\x08").is_some());
        // A header of 640 bytes has the same first bytes as a pickle of protocol 2.
        assert!(kind_of_bytes(640_u64.to_le_bytes()).is_none());
        assert!(kind_of_bytes(0x0403_4b50_u64.to_le_bytes()).is_some());
    }
}
