//! A folder as a store, for one machine and for tests.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;
use xxhash_rust::xxh3::xxh3_128;

use super::{Condition, Listed, Store, StoreError, StoreErrorKind, Version};

/// A folder as a store. Values are files; writers exclude each other with a lock on the file `.lock`, and a file is
/// replaced by renaming, so that readers see the old value or the new one and a crash leaves one of them.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// The store in `root`, which is made when something is first written.
    pub fn new(root: impl Into<PathBuf>) -> Directory {
        Directory { root: root.into() }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn read(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        match fs::read(self.path(key)) {
            Ok(value) => {
                let version = version_of(&value);
                Ok(Some((value, version)))
            }
            // A missing file is nothing there; a missing root is a mistake only the caller can tell from a fresh start.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(failed(format!("read `{key}`"), &error)),
        }
    }

    fn write(&self, key: &str, value: &[u8], condition: &Condition) -> Result<Version, StoreError> {
        let doing = || format!("write `{key}`");
        let io = |error: io::Error| failed(doing(), &error);
        fs::create_dir_all(&self.root).map_err(io)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.root.join(".lock"))
            .map_err(io)?;
        lock.lock().map_err(io)?;
        let known = self.read(key)?.map(|(_, version)| version);
        let holds = match condition {
            Condition::Always => true,
            Condition::IfAbsent => known.is_none(),
            Condition::IfUnchanged(version) => known.as_ref() == Some(version),
        };
        if !holds {
            return Err(StoreError::new(doing(), StoreErrorKind::Conflict));
        }
        let path = self.path(key);
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(io)?;
        // Hidden, so that no listing shows a value that is being written.
        let unfinished = self.root.join(".unfinished");
        let mut file = File::create(&unfinished).map_err(io)?;
        file.write_all(value).and_then(|()| file.sync_all()).map_err(io)?;
        fs::rename(&unfinished, &path).map_err(io)?;
        Ok(version_of(value))
    }
}

impl Store for Directory {
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        self.read(key)
    }

    async fn put(&self, key: &str, value: Vec<u8>, condition: Condition) -> Result<Version, StoreError> {
        self.write(key, &value, &condition)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        let start = self.root.join(prefix);
        for entry in WalkDir::new(&start).min_depth(1) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error)
                    if error.depth() == 0 && error.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) =>
                {
                    break;
                }
                Err(error) => {
                    return Err(StoreError::new(
                        format!("list `{prefix}`"),
                        StoreErrorKind::Failed(error.to_string()),
                    ));
                }
            };
            let hidden = entry.file_name().as_encoded_bytes().first() == Some(&b'.');
            if entry.file_type().is_file() && !hidden {
                let key = entry
                    .path()
                    .strip_prefix(&self.root)
                    .unwrap_or(entry.path())
                    .to_string_lossy()
                    .replace('\\', "/");
                listed.push(Listed {
                    key,
                    size: entry.metadata().map_or(0, |metadata| metadata.len()),
                });
            }
        }
        listed.sort();
        Ok(listed)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(format!("delete `{key}`"), &error)),
            _ => Ok(()),
        }
    }
}

fn version_of(value: &[u8]) -> Version {
    Version(format!("{:032x}", xxh3_128(value)))
}

fn failed(doing: String, error: &io::Error) -> StoreError {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => StoreErrorKind::Denied("the folder's permissions".into()),
        _ => StoreErrorKind::Failed(error.to_string()),
    };
    StoreError::new(doing, kind)
}
