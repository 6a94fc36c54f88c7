//! A folder in which a process finds this library as NCCL.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The names under which NCCL is looked for.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// A new folder with the library, to be put on the loader's search path (`LD_LIBRARY_PATH`) beside the driver's.
#[track_caller]
pub fn folder() -> TempDir {
    let library = library();
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in NAMES {
        let link = folder.path().join(name);
        std::os::unix::fs::symlink(&library, link).expect("a link in a folder of ours");
    }
    folder
}

/// The `cdylib` of this crate, from where cargo puts it: beside a test's executable, or the folder above for a program.
#[track_caller]
fn library() -> PathBuf {
    let name = "libshoal_standin_nccl.so";
    let executable = std::env::current_exe().expect("the path of this executable");
    let folder = executable.parent().map(Path::to_owned).expect("an executable is in a folder");
    let places = [folder.clone(), folder.join("deps"), folder.join("../deps")];
    let found = places.iter().map(|place| place.join(name)).find(|path| path.is_file());
    found.and_then(|path| path.canonicalize().ok()).unwrap_or_else(|| {
        panic!(
            "{name} is in none of {places:?}: make shoal-standin-nccl a dev-dependency of the crate under test"
        )
    })
}
