//! The file of its own: redb, a copy-on-write tree. Each change is one transaction, durable before it is
//! answered; a crash leaves the one before or the one after.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::seal::{sealed, unsealed};
use super::{Change, Store, StoreError};

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cluster");

/// Opens what is kept, or makes it.
type Opening = Box<dyn FnMut(&Path) -> Result<Database, DatabaseError> + Send>;

/// One file.
pub struct Embedded {
    path: PathBuf,
    open: Opening,
    /// Closed after a failed write: redb wants to be opened anew then.
    database: Option<Database>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the file, or makes it, for this process alone.
    ///
    /// # Errors
    /// Another process has it, it is damaged, or the disk does not let us.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::over(path, Box::new(in_file))
    }

    fn over(path: &Path, open: Opening) -> Result<Self, StoreError> {
        let mut store = Self { path: path.to_path_buf(), open, database: None };
        store.database()?;
        Ok(store)
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            let opened = (self.open)(&self.path);
            let opened = opened.map_err(|error| failed(&self.path, "opening it", &error))?;
            self.database = Some(opened);
        }
        Ok(self.database.as_ref().expect("it was just opened"))
    }

    fn try_write(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let path = self.path.clone();
        let writing = |error: &dyn std::error::Error| failed(&path, "writing", error);
        let transaction = self.database()?.begin_write().map_err(|error| writing(&error))?;
        {
            let table = transaction.open_table(TABLE);
            let mut table = table.map_err(|error| writing(&error))?;
            for (key, value) in changes {
                let done = match value {
                    Some(value) => table.insert(key.as_str(), sealed(key, value).as_slice()),
                    None => table.remove(key.as_str()),
                };
                done.map_err(|error| writing(&error))?;
            }
        }
        transaction.commit().map_err(|error| writing(&error))
    }
}

impl Store for Embedded {
    fn load(&mut self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let path = self.path.clone();
        let reading = |error: &dyn std::error::Error| failed(&path, "reading", error);
        let transaction = self.database()?.begin_read().map_err(|error| reading(&error))?;
        let table = match transaction.open_table(TABLE) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(reading(&error)),
        };
        let mut records = Vec::new();
        for entry in table.iter().map_err(|error| reading(&error))? {
            let (key, value) = entry.map_err(|error| reading(&error))?;
            let (key, value) = (key.value().to_owned(), value.value());
            let opened = unsealed(&key, value).map_err(|why| StoreError::Damaged {
                path: path.clone(),
                key: key.clone(),
                why: why.to_owned(),
            })?;
            records.push((key, opened.to_vec()));
        }
        Ok(records)
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let written = self.try_write(changes);
        if written.is_err() {
            self.database = None;
        }
        written
    }

    fn place(&self) -> PathBuf {
        self.path.clone()
    }
}

/// redb makes a new file in steps, and does not know one again that was left half made: it is made aside, and put in
/// its place when it is whole.
fn in_file(path: &Path) -> Result<Database, DatabaseError> {
    let storage = |error: std::io::Error| DatabaseError::Storage(error.into());
    let is_made = fs::metadata(path).is_ok_and(|file| file.len() > 0);
    if !is_made {
        let aside = path.with_extension("new");
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(storage(error)),
            Ok(()) | Err(_) => {}
        }
        // Secrets of runs will be in it: it is its user's alone from the first byte.
        let mut options = OpenOptions::new();
        let made = options.write(true).create(true).truncate(true).mode(0o600).open(&aside);
        made.map_err(storage)?;
        drop(Database::create(&aside)?);
        fs::rename(&aside, path).map_err(storage)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(storage)?;
    }
    Database::create(path)
}

fn failed(path: &Path, doing: &'static str, why: &dyn std::error::Error) -> StoreError {
    StoreError::Database { path: path.to_path_buf(), doing, why: why.to_string() }
}

#[cfg(test)]
mod crashes;
