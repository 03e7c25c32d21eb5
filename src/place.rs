//! Folders and buckets by the names that people type, and the one way to AWS.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use analyzer::Minute;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use tokio::sync::OnceCell;

use crate::logs::{LogBucket, LogFolder, Logs};
use crate::store::{Bucket, Condition, Directory, Listed, Store, StoreError, Version};

/// A folder, or a part of a bucket: `DIR` or `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Folder(PathBuf),
    /// On S3.
    Bucket {
        /// Its name.
        bucket: String,
        /// Empty, or ending in `/`.
        prefix: String,
    },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let Some(rest) = text.strip_prefix("s3://") else {
            if text.is_empty() {
                return Err("name a folder, or a bucket like `s3://bucket/prefix`".into());
            }
            return Ok(Place::Folder(text.into()));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(format!("`{text}` names no bucket; write `s3://bucket/prefix`"));
        }
        let prefix = if prefix.is_empty() || prefix.ends_with('/') {
            prefix.to_owned()
        } else {
            format!("{prefix}/")
        };
        Ok(Place::Bucket {
            bucket: bucket.to_owned(),
            prefix,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(path) => write!(f, "{}", path.display()),
            Place::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// The way to AWS: looked for when it is first needed, because on a machine outside of AWS looking takes seconds, and once,
/// so that all clients share connections and credentials. Clones share it too.
#[derive(Debug, Clone, Default)]
pub struct Aws(Arc<OnceCell<SdkConfig>>);

impl Aws {
    /// Region, credentials and endpoints as every AWS tool finds them: environment, profiles, the instance's or function's
    /// role. TLS is rustls with ring, which needs no C build of its own.
    pub async fn config(&self) -> &SdkConfig {
        let load = async || {
            let http = aws_smithy_http_client::Builder::new()
                .tls_provider(Provider::Rustls(CryptoMode::Ring))
                .build_https();
            let defaults = aws_config::defaults(BehaviorVersion::latest());
            defaults.http_client(http).load().await
        };
        self.0.get_or_init(load).await
    }
}

impl From<SdkConfig> for Aws {
    fn from(config: SdkConfig) -> Aws {
        Aws(Arc::new(OnceCell::new_with(Some(config))))
    }
}

/// A client for S3. Endpoints other than AWS's own rarely have a host name for each bucket.
pub fn s3_client(config: &SdkConfig) -> aws_sdk_s3::Client {
    let builder = aws_sdk_s3::config::Builder::from(config).force_path_style(config.endpoint_url().is_some());
    aws_sdk_s3::Client::from_conf(builder.build())
}

/// The state behind a place.
#[derive(Debug, Clone)]
pub enum State {
    /// A folder.
    Folder(Directory),
    /// A bucket.
    Bucket(Bucket),
}

impl State {
    /// The state at `place`.
    pub async fn at(place: &Place, aws: &Aws) -> State {
        match place {
            Place::Folder(path) => State::Folder(Directory::new(path)),
            Place::Bucket { bucket, prefix } => {
                State::Bucket(Bucket::new(s3_client(aws.config().await), bucket, prefix))
            }
        }
    }
}

impl Store for State {
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        match self {
            State::Folder(store) => store.get(key).await,
            State::Bucket(store) => store.get(key).await,
        }
    }

    async fn put(&self, key: &str, value: Vec<u8>, condition: Condition) -> Result<Version, StoreError> {
        match self {
            State::Folder(store) => store.put(key, value, condition).await,
            State::Bucket(store) => store.put(key, value, condition).await,
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        match self {
            State::Folder(store) => store.list(prefix).await,
            State::Bucket(store) => store.list(prefix).await,
        }
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self {
            State::Folder(store) => store.delete(key).await,
            State::Bucket(store) => store.delete(key).await,
        }
    }
}

/// The log objects behind a place.
#[derive(Debug, Clone)]
pub enum LogPlace {
    /// A folder.
    Folder(LogFolder),
    /// A bucket.
    Bucket(LogBucket),
}

impl LogPlace {
    /// The log objects at `place`.
    pub async fn at(place: &Place, aws: &Aws) -> LogPlace {
        match place {
            Place::Folder(path) => LogPlace::Folder(LogFolder::new(path)),
            Place::Bucket { bucket, prefix } => {
                LogPlace::Bucket(LogBucket::new(s3_client(aws.config().await), bucket, prefix))
            }
        }
    }
}

impl Logs for LogPlace {
    async fn list(&self, from: Minute, to: Minute) -> Result<Vec<Listed>, StoreError> {
        match self {
            LogPlace::Folder(logs) => logs.list(from, to).await,
            LogPlace::Bucket(logs) => logs.list(from, to).await,
        }
    }

    async fn open(&self, key: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        match self {
            LogPlace::Folder(logs) => logs.open(key).await,
            LogPlace::Bucket(logs) => logs.open(key).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_folders_or_parts_of_buckets() {
        let bucket = |bucket: &str, prefix: &str| {
            Ok(Place::Bucket {
                bucket: bucket.into(),
                prefix: prefix.into(),
            })
        };
        assert_eq!("s3://b".parse(), bucket("b", ""));
        assert_eq!("s3://b/a/c".parse(), bucket("b", "a/c/"));
        assert_eq!("s3://b/a/".parse(), bucket("b", "a/"));
        assert_eq!("logs/x".parse(), Ok(Place::Folder("logs/x".into())));
        assert!("s3:///x".parse::<Place>().is_err());
        assert!("".parse::<Place>().is_err());
    }
}
