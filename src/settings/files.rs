//! The two files of settings: `shoal.yaml` here or in a directory above, and `~/.config/shoal/config.yaml`.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use shoal_plan::manifest::BYTES_MAX;
use shoal_plan::settings::{self, File as Settings};

use super::environment_itself;
use crate::exit::Stopped;
use crate::people::xdg;

/// A project's file. A manifest may have this name, too, and is passed over.
pub(crate) const PROJECT: &str = "shoal.yaml";

/// The user's, below `~/.config/shoal`.
const USER: &str = "config.yaml";

/// A directory tree that is deeper is none.
const DEPTH_MAX: usize = 256;

pub(super) fn of_the_user() -> Result<Option<Settings>, Stopped> {
    // Without a home there is no such file.
    let Ok(place) = xdg("XDG_CONFIG_HOME", ".config") else { return Ok(None) };
    read(&place.join("shoal").join(USER), |_| Ok(()))
}

/// The nearest from the working directory upwards.
pub(super) fn of_the_project() -> Result<Option<Settings>, Stopped> {
    // Whose directory was removed has no project.
    let Ok(here) = std::env::current_dir() else { return Ok(None) };
    nearest(&here, rustix::process::geteuid().as_raw())
}

pub(super) fn nearest(here: &Path, user: u32) -> Result<Option<Settings>, Stopped> {
    for directory in here.ancestors().take(DEPTH_MAX) {
        let path = directory.join(PROJECT);
        if let Some(found) = read(&path, |file| whose(&path, file, user))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A file in a directory that others write to might send jobs and rigs to a cluster of theirs.
fn whose(path: &Path, file: &Metadata, user: u32) -> Result<(), Stopped> {
    let owner = file.uid();
    let wrong = if owner != user && owner != 0 {
        format!("it belongs to user {owner}, and not to you")
    } else if file.mode() & 0o002 != 0 {
        format!("everybody may write to it (mode {:03o})", file.mode() & 0o777)
    } else {
        return Ok(());
    };
    Err(Stopped::Input(format!(
        "{}: {wrong}, so its settings are not taken: make it yours alone, or move it away",
        path.display()
    )))
}

fn read(
    path: &PathBuf,
    check: impl Fn(&Metadata) -> Result<(), Stopped>,
) -> Result<Option<Settings>, Stopped> {
    let wrong = |error: std::io::Error| {
        Stopped::Input(format!("cannot read the settings in {}: {error}", path.display()))
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(wrong(error)),
    };
    let metadata = file.metadata().map_err(wrong)?;
    let mut text = String::new();
    // One byte more than there may be, so that too many are seen.
    file.take(BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(wrong)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.display().to_string();
    let parsed = settings::parse(&name, &text, directory, &environment_itself);
    let parsed = parsed.map_err(|error| Stopped::Input(error.to_string()))?;
    if parsed.is_some() {
        check(&metadata)?;
    }
    Ok(parsed)
}
