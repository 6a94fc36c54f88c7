//! Where a program that is started here would find NVIDIA's libraries: the loader's directories, the CUDA image's,
//! and those of Python's packages. Nothing is loaded.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::finding::{Finding, Group};

/// Files that are read for the loader's directories.
const LOADER: &str = "/etc/ld.so.conf.d";

/// Where the loader looks by itself, where WSL2 puts the driver, and where CUDA's images have their own.
const USUAL: [&str; 9] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/lib/wsl/lib",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/x86_64-linux/lib",
];

/// One library, and the file that would be it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Library {
    pub(super) name: &'static str,
    pub(super) use_of_it: &'static str,
    pub(super) file: Option<PathBuf>,
}

pub(super) fn here() -> Vec<Library> {
    let places = places();
    let library = |name, begin: &str, use_of_it| {
        let file = places.iter().find_map(|place| find(place, begin));
        Library { name, use_of_it, file }
    };
    vec![
        library("NVRTC", "libnvrtc.so.", "not needed: kernels are in the program"),
        library("NCCL", "libnccl.so.2", "not used yet: rigs speak TCP"),
    ]
}

impl Library {
    pub(super) fn finding(&self) -> Finding {
        let is = self
            .file
            .as_ref()
            .map_or_else(|| "not there".to_owned(), |file| file.display().to_string());
        Group::Gpu.ok(self.name, format!("{is} ({})", self.use_of_it))
    }
}

/// In the order in which they would be looked at.
fn places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = env::var_os("LD_LIBRARY_PATH")
        .map(|paths| env::split_paths(&paths).collect())
        .unwrap_or_default();
    for file in listed(Path::new(LOADER)) {
        let text = fs::read_to_string(file).unwrap_or_default();
        places.extend(
            text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from),
        );
    }
    places.extend(USUAL.map(PathBuf::from));
    let home =
        |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let roots = [
        home("VIRTUAL_ENV"),
        home("HOME").map(|home| home.join(".local")),
        Some("/usr/local".into()),
        Some("/usr".into()),
    ];
    for root in roots.into_iter().flatten() {
        places.extend(of_python(&root.join("lib")));
    }
    places
}

/// `python3.N/site-packages/nvidia/*/lib` and Debian's `dist-packages`.
fn of_python(lib: &Path) -> Vec<PathBuf> {
    let is_python = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
    };
    let pythons = listed(lib).into_iter().filter(is_python);
    let packages =
        pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|name| python.join(name)));
    packages
        .flat_map(|packages| listed(&packages.join("nvidia")))
        .map(|part| part.join("lib"))
        .collect()
}

/// The file of this name, or of one that begins with it.
fn find(place: &Path, begin: &str) -> Option<PathBuf> {
    listed(place)
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin)))
}

/// What lies in a directory, sorted; nothing where there is none.
fn listed(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_packages_are_looked_into_and_a_missing_library_is_no_fault() {
        let root = env::temp_dir().join(format!("shoal-doctor-{}", std::process::id()));
        let lib = root.join("python3.12/site-packages/nvidia/nccl/lib");
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join("libnccl.so.2"), "").unwrap();
        let places = of_python(&root);
        assert_eq!(places, std::slice::from_ref(&lib));
        assert_eq!(find(&lib, "libnccl.so.2"), Some(lib.join("libnccl.so.2")));
        assert_eq!(find(&lib, "libnvrtc.so."), None);
        fs::remove_dir_all(&root).unwrap();
        let library = Library { name: "NCCL", use_of_it: "not used yet", file: None };
        assert_eq!(library.finding().fact, "not there (not used yet)");
        assert!(library.finding().mend.is_none());
    }
}
