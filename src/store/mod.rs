//! Keeps what must survive a run: a folder, or a bucket, of its own.
//!
//! One port, [`Store`]: whole values under keys, conditional writes, listing by prefix. A failed read is an error and never
//! "nothing there". The contract is in `tests/store.rs`, which runs against every implementation.

mod directory;
mod s3;

use std::fmt;
use std::future::Future;

pub use directory::Directory;
pub use s3::Bucket;
pub(crate) use s3::failed as s3_failed;

/// Whole values under keys. Keys are relative paths with `/`; a value is read and written at once.
pub trait Store: Send + Sync {
    /// The value of `key` and which version of it that is; `None` only if there certainly is none.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<(Vec<u8>, Version)>, StoreError>> + Send;

    /// Writes `value`, if `condition` holds at that moment.
    fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        condition: Condition,
    ) -> impl Future<Output = Result<Version, StoreError>> + Send;

    /// Every key that begins with `prefix`, in order. A prefix ends at a `/` or is empty.
    fn list(&self, prefix: &str) -> impl Future<Output = Result<Vec<Listed>, StoreError>> + Send;

    /// Removes a value; there is nothing wrong with there being none.
    fn delete(&self, key: &str) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Which value was read, so that a write can insist on it. An ETag on S3, a hash in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(pub String);

/// When a write may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    Always,
    /// Only if there is no such key: `If-None-Match: *`.
    IfAbsent,
    /// Only if nobody wrote it since: `If-Match`.
    IfUnchanged(Version),
}

/// A key that exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The whole key.
    pub key: String,
    /// In bytes.
    pub size: u64,
}

/// Why a value could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError {
    /// What was tried, as a fragment: "read `ledger.json`".
    pub doing: String,
    /// What went wrong.
    pub kind: StoreErrorKind,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// Somebody else wrote first: read again, decide again.
    Conflict,
    /// We may not; what is missing.
    Denied(String),
    /// Anything else; trying again may help.
    Failed(String),
}

impl StoreError {
    pub(crate) fn new(doing: impl Into<String>, kind: StoreErrorKind) -> StoreError {
        StoreError {
            doing: doing.into(),
            kind,
        }
    }

    /// Whether somebody else wrote first.
    pub fn is_conflict(&self) -> bool {
        self.kind == StoreErrorKind::Conflict
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            StoreErrorKind::Conflict => write!(f, "failed to {}: somebody else wrote it first", self.doing),
            StoreErrorKind::Denied(what) => write!(f, "failed to {}: access denied ({what})", self.doing),
            StoreErrorKind::Failed(what) => write!(f, "failed to {}: {what}", self.doing),
        }
    }
}

impl std::error::Error for StoreError {}
