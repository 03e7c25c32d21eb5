//! The port: what an IP set is, and what can be asked of whoever keeps it.

use std::fmt;
use std::future::Future;

use ipnet::IpNet;
use thiserror::Error;

/// How many addresses one IP set holds: WAF's quota "Maximum number of addresses in CIDR notation per IP set". It is
/// fixed, support cannot raise it (AWS WAF Developer Guide, page "AWS WAF quotas").
pub const ADDRESSES_MAX: usize = 10_000;

/// Keeps IP sets: [`Wafv2`](crate::Wafv2), or [`Memory`](crate::Memory).
///
/// An implementation owns its pace. WAF allows one update and five reads a second, for the whole account and Region;
/// callers here make their calls one after the other and do not wait in between.
pub trait IpSets {
    /// Reads one set. A failed read is an error and never an empty set.
    fn get(&self, set: &SetId) -> impl Future<Output = Result<IpSet, IpSetError>> + Send;

    /// Replaces the whole content of one set, if nobody changed it since `lock` was observed.
    fn update(
        &self,
        set: &SetId,
        addresses: &[IpNet],
        lock: &LockToken,
    ) -> impl Future<Output = Result<(), IpSetError>> + Send;
}

impl<T: IpSets> IpSets for &T {
    fn get(&self, set: &SetId) -> impl Future<Output = Result<IpSet, IpSetError>> + Send {
        (**self).get(set)
    }

    fn update(
        &self,
        set: &SetId,
        addresses: &[IpNet],
        lock: &LockToken,
    ) -> impl Future<Output = Result<(), IpSetError>> + Send {
        (**self).update(set, addresses, lock)
    }
}

/// One IP set as it was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpSet {
    /// Its content, in whatever order it came.
    pub addresses: Vec<IpNet>,
    /// Proves to [`IpSets::update`] that we saw this content.
    pub lock_token: LockToken,
    /// Which addresses it can hold.
    pub family: Family,
}

/// Names one IP set. WAF wants both, its name and its id, in every call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId {
    /// What a person called it.
    pub name: String,
    /// What WAF called it.
    pub id: String,
}

impl SetId {
    /// The set with this name and id.
    pub fn new(name: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            id: id.into(),
        }
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A version of a set's content, opaque to us. Each update makes it stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockToken(pub String);

/// IPv4 or IPv6. A set holds one of them, never both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of a network as it is written: a v4-mapped one is still IPv6 here.
    pub fn of(network: &IpNet) -> Self {
        match network {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why a set could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IpSetError {
    /// `WAFOptimisticLockException`: our view is stale. Reading again helps, sending the same again does not.
    #[error("somebody changed the IP set after we read it")]
    OptimisticLock,
    /// `WAFNonexistentItemException`.
    #[error("there is no IP set of this name and id: it was deleted, renamed or created anew")]
    Nonexistent,
    /// `WAFInvalidParameterException`.
    #[error("WAF refused {field} `{parameter}`: {reason}")]
    InvalidParameter {
        /// Which field, in WAF's words, as `IP_ADDRESS`.
        field: String,
        /// What we sent there.
        parameter: String,
        /// What WAF has against it.
        reason: String,
    },
    /// `WAFLimitsExceededException`.
    #[error("the IP set would hold more addresses than WAF allows")]
    LimitsExceeded,
    /// `ThrottlingException`.
    #[error("WAF asks us to slow down")]
    Throttled,
    /// `WAFInternalErrorException`. The call may have been carried out.
    #[error("WAF had an internal error")]
    Internal,
    /// No answer arrived, or none that could be read. The call may have been carried out.
    #[error("no answer to `{action}`: {reason}")]
    NoAnswer {
        /// The IAM action, as `wafv2:UpdateIPSet`.
        action: String,
        /// A timeout, a broken connection, missing credentials.
        reason: String,
    },
    /// `AccessDeniedException`.
    #[error("not allowed to call `{action}`")]
    Denied {
        /// The IAM action, as `wafv2:UpdateIPSet`.
        action: String,
    },
    /// Anything else, in the words it came with.
    #[error("{0}")]
    Other(String),
}

impl IpSetError {
    /// Whether reading again, and trying again with what was read, can end better.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::OptimisticLock | Self::Throttled | Self::Internal | Self::NoAnswer { .. } => true,
            Self::Nonexistent
            | Self::InvalidParameter { .. }
            | Self::LimitsExceeded
            | Self::Denied { .. }
            | Self::Other(_) => false,
        }
    }
}
