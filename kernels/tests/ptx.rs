//! The PTX that ships was made from the sources that are here. Needs no compiler.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

/// `.ci/ptx` writes the hash of every source beside the images.
#[test]
fn no_cuda_source_has_changed_since_its_ptx_was_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut hashes = BTreeMap::new();
    for entry in fs::read_dir(root.join("src/cuda")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
            hashes.insert(name, Sha256::digest(fs::read(&path).unwrap()));
        }
    }
    assert!(!hashes.is_empty());
    let mut want = String::new();
    for (name, hash) in hashes {
        let hash = hash.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        writeln!(want, "{hash}  {name}").unwrap();
    }
    let found = fs::read_to_string(root.join("ptx/SOURCES")).unwrap();
    assert_eq!(found, want, "kernels/ptx is older than kernels/src/cuda: run .ci/ptx");
}
