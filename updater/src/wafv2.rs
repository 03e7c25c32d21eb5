//! AWS WAF as keeper of the sets: the only file of this crate that knows AWS.
//!
//! [`Wafv2`] adds three things to the calls of the SDK. It keeps WAF's pace, it keeps what an update would otherwise
//! erase, and it says every refusal in the words of [`IpSetError`]. It decides nothing.

use std::collections::{HashMap, VecDeque};
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_wafv2::Client;
use aws_sdk_wafv2::config::retry::RetryConfig;
use aws_sdk_wafv2::config::timeout::TimeoutConfig;
use aws_sdk_wafv2::config::{Builder, Region};
use aws_sdk_wafv2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_wafv2::types::{IpAddressVersion, IpSetSummary};
use aws_types::SdkConfig;
use ipnet::IpNet;
use tokio::time::{Instant, sleep_until};

use crate::{Family, IpSet, IpSetError, IpSets, LockToken, SetId};

/// WAF's own limits per account and Region, which support cannot raise (AWS WAF Developer Guide, page "AWS WAF
/// quotas"). The console and deployments take from them too, so being throttled stays possible.
const UPDATES_PER_SECOND_MAX: usize = 1;
const READS_PER_SECOND_MAX: usize = 5;
/// A second, and a little: calls do not arrive as evenly as they leave.
const SECOND: Duration = Duration::from_millis(1_100);
/// How long one attempt of a call may take, if the configuration does not say. WAF takes 10,000 addresses in less.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How many pages of sets [`Wafv2::find`] looks through, of a hundred sets each: a hundred times the default quota.
const PAGES_MAX: usize = 100;
const PAGE_SETS: i32 = 100;

/// The IP sets of one scope in one Region. Clones share their pace.
#[derive(Debug, Clone)]
pub struct Wafv2 {
    client: Client,
    scope: Scope,
    reads: Arc<Pace>,
    updates: Arc<Pace>,
    descriptions: Arc<Mutex<Descriptions>>,
}

/// The description that each set had at the last reading, and the lock token which proves that it still has it.
type Descriptions = HashMap<SetId, (LockToken, Option<String>)>;

/// Where a set lives, and which resources can use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Load balancers, API Gateway and other resources of one Region.
    Regional,
    /// CloudFront.
    Cloudfront,
}

/// The Region to talk to: `us-east-1` for [`Scope::Cloudfront`], because WAF keeps those sets nowhere else, and the
/// stack's own for the rest.
pub fn region_of(scope: Scope, stack_region: Option<Region>) -> Option<Region> {
    match scope {
        Scope::Regional => stack_region,
        Scope::Cloudfront => Some(Region::from_static("us-east-1")),
    }
}

impl Wafv2 {
    /// Talks to WAF with the credentials, the HTTP client and the endpoint of `config`.
    pub fn new(config: &SdkConfig, scope: Scope) -> Self {
        let mut timeouts = config
            .timeout_config()
            .map(TimeoutConfig::to_builder)
            .unwrap_or_default();
        timeouts = timeouts.take_unset_from(TimeoutConfig::builder().operation_attempt_timeout(ANSWER_TIMEOUT));
        let region = region_of(scope, config.region().cloned());
        Self {
            client: Client::from_conf(
                Builder::from(config)
                    .region(region)
                    .timeout_config(timeouts.build())
                    .build(),
            ),
            scope,
            reads: Arc::new(Pace::new(READS_PER_SECOND_MAX)),
            updates: Arc::new(Pace::new(UPDATES_PER_SECOND_MAX)),
            descriptions: Arc::default(),
        }
    }

    /// The set of this name, for deployments that know no ids.
    pub async fn find(&self, name: &str) -> Result<Option<SetId>, IpSetError> {
        const ACTION: &str = "wafv2:ListIPSets";
        let mut marker = None;
        for _ in 0..PAGES_MAX {
            self.reads.turn().await;
            let page = self.client.list_ip_sets().scope(self.scope.into()).limit(PAGE_SETS);
            let page = page.set_next_marker(marker).send().await;
            let page = page.map_err(|error| refused(ACTION, error))?;
            if let Some(id) = page.ip_sets().iter().find_map(|set| id_if_named(set, name)) {
                return Ok(Some(id));
            }
            // WAF may hand out a marker on the last page too; what follows is a page without sets.
            marker = page
                .next_marker()
                .filter(|_| !page.ip_sets().is_empty())
                .map(str::to_owned);
            if marker.is_none() {
                return Ok(None);
            }
        }
        Err(IpSetError::Other(format!(
            "there are more than {} IP sets, and `{name}` is not among the first",
            PAGES_MAX * PAGE_SETS as usize
        )))
    }

    /// Reads a set and its description.
    async fn read(&self, set: &SetId) -> Result<(IpSet, Option<String>), IpSetError> {
        const ACTION: &str = "wafv2:GetIPSet";
        self.reads.turn().await;
        let get = self
            .client
            .get_ip_set()
            .scope(self.scope.into())
            .name(&set.name)
            .id(&set.id);
        let answer = get.send().await.map_err(|error| refused(ACTION, error))?;
        let (Some(found), Some(lock_token)) = (answer.ip_set, answer.lock_token) else {
            return Err(IpSetError::Other(format!(
                "WAF answered `{ACTION}` without content or lock token"
            )));
        };
        let family = match found.ip_address_version() {
            IpAddressVersion::Ipv4 => Family::V4,
            IpAddressVersion::Ipv6 => Family::V6,
            other => {
                return Err(IpSetError::Other(format!(
                    "the IP set is for `{other}`, which is unknown here"
                )));
            }
        };
        // Leaving out what we cannot read would remove it with the next update.
        let parse = |address: &String| {
            let unreadable = || IpSetError::Other(format!("the IP set holds `{address}`, which is no CIDR notation"));
            address.parse::<IpNet>().map_err(|_| unreadable())
        };
        let addresses = found.addresses().iter().map(parse).collect::<Result<_, _>>()?;
        let ip_set = IpSet {
            addresses,
            lock_token: LockToken(lock_token),
            family,
        };
        // WAF says "" where there is none, and refuses to be told so.
        Ok((ip_set, found.description.filter(|description| !description.is_empty())))
    }

    /// The description that the set has as long as `lock` is its lock token.
    async fn description(&self, set: &SetId, lock: &LockToken) -> Result<Option<String>, IpSetError> {
        let remembered = self
            .descriptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(set)
            .cloned();
        match remembered {
            Some((seen, description)) if seen == *lock => Ok(description),
            _ => match self.read(set).await? {
                (ip_set, description) if ip_set.lock_token == *lock => Ok(description),
                _ => Err(IpSetError::OptimisticLock),
            },
        }
    }
}

impl IpSets for Wafv2 {
    async fn get(&self, set: &SetId) -> Result<IpSet, IpSetError> {
        let (ip_set, description) = self.read(set).await?;
        let seen = (ip_set.lock_token.clone(), description);
        self.descriptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(set.clone(), seen);
        Ok(ip_set)
    }

    async fn update(&self, set: &SetId, addresses: &[IpNet], lock: &LockToken) -> Result<(), IpSetError> {
        // An update without a description erases it.
        let description = self.description(set, lock).await?;
        self.updates.turn().await;
        let update = self
            .client
            .update_ip_set()
            .scope(self.scope.into())
            .name(&set.name)
            .id(&set.id);
        let update = update
            .set_description(description)
            .set_addresses(Some(addresses.iter().map(IpNet::to_string).collect()))
            .lock_token(&lock.0);
        // Sent again by the SDK, an update whose answer got lost would meet its own, now stale, lock token, and a
        // throttled one would come without its turn. `reconcile` reads first.
        let once = aws_sdk_wafv2::Config::builder().retry_config(RetryConfig::disabled());
        let answer = update.customize().config_override(once).send().await;
        answer.map(drop).map_err(|error| refused("wafv2:UpdateIPSet", error))
    }
}

impl From<Scope> for aws_sdk_wafv2::types::Scope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Regional => Self::Regional,
            Scope::Cloudfront => Self::Cloudfront,
        }
    }
}

/// So many calls a second, in the order in which they asked.
#[derive(Debug)]
struct Pace {
    calls_max: usize,
    /// When the last calls left, at most `calls_max` of them.
    recent: tokio::sync::Mutex<VecDeque<Instant>>,
}

impl Pace {
    fn new(calls_max: usize) -> Self {
        Self {
            calls_max,
            recent: tokio::sync::Mutex::default(),
        }
    }

    /// Waits until one more call may leave.
    async fn turn(&self) {
        // Who waits holds the lock, so that nobody overtakes. It is forgotten only after the wait: a caller that gives
        // up in between must not let the next one leave early.
        let mut recent = self.recent.lock().await;
        if recent.len() == self.calls_max {
            if let Some(oldest) = recent.front() {
                sleep_until(*oldest + SECOND).await;
            }
            recent.pop_front();
        }
        recent.push_back(Instant::now());
    }
}

fn id_if_named(set: &IpSetSummary, name: &str) -> Option<SetId> {
    (set.name() == Some(name)).then(|| SetId::new(name, set.id().unwrap_or_default()))
}

/// What it means that `action` failed.
fn refused<E, R>(action: &str, error: SdkError<E, R>) -> IpSetError
where
    E: std::error::Error + 'static,
    R: std::fmt::Debug,
    aws_sdk_wafv2::Error: From<SdkError<E, R>>,
{
    match &error {
        SdkError::ServiceError(_) => said(action, aws_sdk_wafv2::Error::from(error)),
        SdkError::ConstructionFailure(_) => IpSetError::Other(format!("`{action}` was not sent: {}", reasons(&error))),
        // A timeout, a broken connection, credentials that could not be had, or an answer that was none.
        _ => IpSetError::NoAnswer {
            action: action.to_owned(),
            reason: reasons(&error),
        },
    }
}

/// What WAF said.
fn said(action: &str, error: aws_sdk_wafv2::Error) -> IpSetError {
    use aws_sdk_wafv2::Error as Waf;
    match error {
        Waf::WafOptimisticLockException(_) => IpSetError::OptimisticLock,
        Waf::WafNonexistentItemException(_) => IpSetError::Nonexistent,
        Waf::WafLimitsExceededException(_) => IpSetError::LimitsExceeded,
        Waf::WafInternalErrorException(_) => IpSetError::Internal,
        Waf::WafInvalidParameterException(error) => IpSetError::InvalidParameter {
            field: error.field().map_or("a parameter", |field| field.as_str()).to_owned(),
            parameter: error.parameter().unwrap_or_default().to_owned(),
            reason: error
                .reason()
                .or(error.message())
                .unwrap_or("it gave no reason")
                .to_owned(),
        },
        other => match other.code() {
            Some("AccessDeniedException" | "AccessDenied") => IpSetError::Denied {
                action: action.to_owned(),
            },
            Some("ThrottlingException" | "Throttling" | "TooManyRequestsException") => IpSetError::Throttled,
            Some("InternalFailure" | "InternalServerError" | "ServiceUnavailable") => IpSetError::Internal,
            code => {
                let (code, words) = (
                    code.unwrap_or("an unknown error"),
                    other.message().unwrap_or("no message"),
                );
                IpSetError::Other(format!("WAF refused `{action}` with {code}: {words}"))
            }
        },
    }
}

/// The error and what is behind it, on one line.
fn reasons<E, R>(error: &SdkError<E, R>) -> String
where
    E: std::error::Error + 'static,
    R: std::fmt::Debug,
{
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests;
