//! A bucket as a store.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;

use crate::engine::chain;

use super::{Condition, Listed, Store, StoreError, StoreErrorKind, Version};

/// A bucket, or a part of one below a prefix, as a store.
///
/// S3 refuses a conditional write with 412 when the condition does not hold, and with 409 when another write is under way
/// (S3 user guide, conditional writes); both are conflicts here.
#[derive(Debug, Clone)]
pub struct Bucket {
    client: Client,
    bucket: String,
    prefix: String,
}

impl Bucket {
    /// The store in `bucket` below `prefix`, which is empty or ends with `/`.
    pub fn new(client: Client, bucket: impl Into<String>, prefix: impl Into<String>) -> Bucket {
        let mut prefix = prefix.into();
        if !prefix.is_empty() && !prefix.ends_with('/') {
            prefix.push('/');
        }
        Bucket {
            client,
            bucket: bucket.into(),
            prefix,
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn shown(&self, key: &str) -> String {
        format!("s3://{}/{}", self.bucket, self.key(key))
    }

    /// Every key below `prefix`, in order, of which none is before `from` and none is `to` or later; empty is no bound. S3
    /// is asked for no more than that, a request for each 1,000 keys.
    ///
    /// # Errors
    /// When one of the requests failed.
    pub async fn list_between(&self, prefix: &str, from: &str, to: &str) -> Result<Vec<Listed>, StoreError> {
        let doing = || format!("list `{}`", self.shown(prefix));
        let list = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.key(prefix));
        let list = list.set_start_after((!from.is_empty()).then(|| self.key(from)));
        let mut pages = list.into_paginator().send();
        let mut listed = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failed(doing(), &error, "s3:ListBucket"))?;
            for object in page.contents() {
                let Some(key) = object.key().and_then(|key| key.strip_prefix(&self.prefix)) else {
                    continue;
                };
                if !to.is_empty() && key >= to {
                    return Ok(listed);
                }
                listed.push(Listed {
                    key: key.to_owned(),
                    size: object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                });
            }
        }
        Ok(listed)
    }
}

impl Store for Bucket {
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        let doing = || format!("read `{}`", self.shown(key));
        let answer = match self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .send()
            .await
        {
            Ok(answer) => answer,
            // Without s3:ListBucket a missing key is answered with 403, which must not pass for "nothing there".
            Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_key()) => return Ok(None),
            Err(error) => return Err(failed(doing(), &error, "s3:GetObject and s3:ListBucket")),
        };
        let version = Version(answer.e_tag().unwrap_or_default().to_owned());
        let bytes = answer.body.collect().await;
        let bytes = bytes.map_err(|error| StoreError::new(doing(), StoreErrorKind::Failed(error.to_string())))?;
        Ok(Some((bytes.into_bytes().to_vec(), version)))
    }

    async fn put(&self, key: &str, value: Vec<u8>, condition: Condition) -> Result<Version, StoreError> {
        let doing = format!("write `{}`", self.shown(key));
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .body(ByteStream::from(value));
        let put = match condition {
            Condition::Always => put,
            Condition::IfAbsent => put.if_none_match("*"),
            Condition::IfUnchanged(version) => put.if_match(version.0),
        };
        match put.send().await {
            Ok(answer) => Ok(Version(answer.e_tag().unwrap_or_default().to_owned())),
            Err(error) => Err(failed(doing, &error, "s3:PutObject")),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.list_between(prefix, "", "").await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let doing = || format!("delete `{}`", self.shown(key));
        let sent = self
            .client
            .delete_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .send()
            .await;
        sent.map(|_| ())
            .map_err(|error| failed(doing(), &error, "s3:DeleteObject"))
    }
}

/// Any SDK error as ours; `permission` is what is missing if we may not.
pub(crate) fn failed<E>(doing: String, error: &SdkError<E>, permission: &str) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let kind = match (status, error.code()) {
        (Some(412), _) | (_, Some("PreconditionFailed" | "ConditionalRequestConflict")) => StoreErrorKind::Conflict,
        (Some(403), _) | (_, Some("AccessDenied")) => StoreErrorKind::Denied(format!("{permission} is needed")),
        (_, Some("NoSuchBucket")) => StoreErrorKind::Failed("there is no such bucket".into()),
        (_, Some(code)) => {
            StoreErrorKind::Failed(format!("{code}: {}", error.message().unwrap_or("no reason was given")))
        }
        _ => StoreErrorKind::Failed(chain(error)),
    };
    StoreError::new(doing, kind)
}
