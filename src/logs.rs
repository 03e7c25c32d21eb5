//! Where the log objects of a deployment are: a folder, or a bucket.

use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::path::PathBuf;

use analyzer::Minute;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use chrono::{DateTime, Utc};
use ingest::object_key;
use tokio_util::io::SyncIoBridge;
use walkdir::WalkDir;

use crate::inputs;
use crate::store::{Bucket, Listed, StoreError, StoreErrorKind, s3_failed};

/// Log objects under keys, for reading only.
pub trait Logs: Send + Sync {
    /// The objects that may hold requests from `from` on and before `to`, in order of their keys.
    fn list(&self, from: Minute, to: Minute) -> impl Future<Output = Result<Vec<Listed>, StoreError>> + Send;

    /// The bytes of one object, as they come. Blocks while it reads, so it must be read on a thread that may.
    fn open(&self, key: &str) -> impl Future<Output = Result<Box<dyn Read + Send>, StoreError>> + Send;
}

/// A folder of log objects, with its whole tree.
#[derive(Debug, Clone)]
pub struct LogFolder {
    root: PathBuf,
}

impl LogFolder {
    /// The objects below `root`.
    pub fn new(root: impl Into<PathBuf>) -> LogFolder {
        LogFolder { root: root.into() }
    }
}

impl Logs for LogFolder {
    async fn list(&self, from: Minute, to: Minute) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        for entry in WalkDir::new(&self.root).min_depth(1).follow_links(true) {
            let entry = entry.map_err(|error| {
                StoreError::new(
                    format!("list `{}`", self.root.display()),
                    StoreErrorKind::Failed(error.io_error().map_or_else(|| error.to_string(), inputs::describe)),
                )
            })?;
            let hidden = entry.file_name().as_encoded_bytes().first() == Some(&b'.');
            if !entry.file_type().is_file() || hidden {
                continue;
            }
            let key = entry
                .path()
                .strip_prefix(&self.root)
                .unwrap_or(entry.path())
                .to_string_lossy()
                .replace('\\', "/");
            if object_key::parse(&key).may_hold(Some(from.epoch_seconds()), Some(to.epoch_seconds())) {
                listed.push(Listed {
                    key,
                    size: entry.metadata().map_or(0, |metadata| metadata.len()),
                });
            }
        }
        listed.sort();
        Ok(listed)
    }

    async fn open(&self, key: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        match File::open(self.root.join(key)) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) => Err(StoreError::new(
                format!("read `{key}`"),
                StoreErrorKind::Failed(inputs::describe(&error)),
            )),
        }
    }
}

/// A bucket of log objects below a prefix that is followed by `YYYY/MM/dd/HH/`, as Firehose and AWS WAF write them.
#[derive(Debug, Clone)]
pub struct LogBucket {
    client: Client,
    bucket: String,
    prefix: String,
}

impl LogBucket {
    /// The objects in `bucket` below `prefix`.
    pub fn new(client: Client, bucket: impl Into<String>, prefix: impl Into<String>) -> LogBucket {
        LogBucket {
            client,
            bucket: bucket.into(),
            prefix: prefix.into(),
        }
    }

    /// Whether an object is one of those that [`Logs::list`] finds at some time; others are somebody else's, or nothing
    /// that holds requests, like what Firehose could not deliver.
    pub fn holds(&self, bucket: &str, key: &str) -> bool {
        let hour = |rest: &str| {
            let mut parts = rest.split('/');
            let digits = [4, 2, 2, 2].map(|digits| {
                let part = parts.next().unwrap_or_default();
                part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit())
            });
            digits == [true; 4] && parts.next().is_some_and(|name| !name.is_empty())
        };
        bucket == self.bucket && key.strip_prefix(&self.prefix).is_some_and(hour)
    }
}

impl Logs for LogBucket {
    async fn list(&self, from: Minute, to: Minute) -> Result<Vec<Listed>, StoreError> {
        // Keys sort by time, so one listing from the first hour on serves the whole period, a request for each 1,000 keys.
        // An object is named for the time when it was begun, so that the hour before the period may hold requests of it.
        let hour = |seconds: i64| {
            let time = DateTime::<Utc>::from_timestamp(seconds.div_euclid(3600) * 3600, 0).unwrap_or_default();
            format!("{}{}", self.prefix, time.format("%Y/%m/%d/%H/"))
        };
        let first = hour(from.epoch_seconds() - object_key::GATHERING_SECONDS);
        let after_last = hour(to.epoch_seconds() + object_key::DELIVERY_LATE_SECONDS + 3600);
        let store = Bucket::new(self.client.clone(), &self.bucket, "");
        let mut listed = store.list_between(&self.prefix, &first, &after_last).await?;
        listed.retain(|object| {
            object_key::parse(&object.key).may_hold(Some(from.epoch_seconds()), Some(to.epoch_seconds()))
        });
        Ok(listed)
    }

    async fn open(&self, key: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        Ok(Box::new(SyncIoBridge::new(self.body(key, 0).await?.into_async_read())))
    }
}

impl LogBucket {
    /// The bytes of one object from a position on, as they come.
    ///
    /// # Errors
    /// When the bucket does not give it.
    pub(crate) async fn body(&self, key: &str, from: u64) -> Result<ByteStream, StoreError> {
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        let sent = get.set_range((from > 0).then(|| format!("bytes={from}-"))).send().await;
        let object =
            sent.map_err(|error| s3_failed(format!("read `s3://{}/{key}`", self.bucket), &error, "s3:GetObject"))?;
        Ok(object.body)
    }
}
