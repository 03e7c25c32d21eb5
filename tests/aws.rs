//! What talks to AWS, against a stand-in for AWS on this machine.
//!
//! `standin` installs and starts it, once per test process; `api` makes any call to it by name. `strict` looks at the
//! stand-in itself: a test that passes on something more lenient than AWS says nothing. `contract` is what
//! [`updater::IpSets`] promises, looked at in the fake and in the real adapter alike. `wafv2` is what only the real adapter
//! can do. `calls` counts what leaves the process.

mod api;
mod calls;
mod contract;
mod standin;
mod strict;
mod wafv2;

use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_wafv2::types::{IpAddressVersion, Scope};
use ipnet::IpNet;
use updater::{Family, SetId};

pub(crate) use api::Api;
pub(crate) use standin::StandIn;

fn networks(text: &str) -> Vec<IpNet> {
    text.split_whitespace()
        .map(|network| network.parse().unwrap())
        .collect()
}

/// So many networks of which no two can be united: every other /32, or every other /64.
fn many(family: Family, count: u32) -> Vec<IpNet> {
    let network = |index: u32| match family {
        Family::V4 => IpNet::new((0x0a00_0000 + 2 * index).to_be_bytes().into(), 32).unwrap(),
        Family::V6 => IpNet::new(
            ((0x2001_0db8_0000_0000 + 2 * u128::from(index)) << 64)
                .to_be_bytes()
                .into(),
            64,
        )
        .unwrap(),
    };
    (0..count).map(network).collect()
}

/// A name that nothing else in this process has.
pub(crate) fn unique(name: &str) -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Somebody at the console: bare calls, without the adapter's pace and care.
#[derive(Debug)]
struct Console {
    client: aws_sdk_wafv2::Client,
    scope: Scope,
}

impl Console {
    fn new(aws: &StandIn, region: &'static str, scope: Scope) -> Console {
        Console {
            client: aws_sdk_wafv2::Client::new(&aws.config(region)),
            scope,
        }
    }

    async fn create(&self, name: &str, family: Family, addresses: &[IpNet], description: Option<&str>) -> SetId {
        let version = match family {
            Family::V4 => IpAddressVersion::Ipv4,
            Family::V6 => IpAddressVersion::Ipv6,
        };
        let create = self
            .client
            .create_ip_set()
            .name(name)
            .scope(self.scope.clone())
            .ip_address_version(version);
        let create = create.set_description(description.map(str::to_owned));
        let create = create.set_addresses(Some(addresses.iter().map(IpNet::to_string).collect()));
        SetId::new(name, create.send().await.unwrap().summary.unwrap().id.unwrap())
    }

    async fn add(&self, set: &SetId, network: IpNet) {
        let found = self.get(set).await;
        let update = self
            .client
            .update_ip_set()
            .name(&set.name)
            .id(&set.id)
            .scope(self.scope.clone());
        let update = update
            .set_addresses(found.ip_set.map(|set| set.addresses))
            .addresses(network.to_string());
        update.set_lock_token(found.lock_token).send().await.unwrap();
    }

    async fn delete(&self, set: &SetId) {
        let lock = self.get(set).await.lock_token;
        let delete = self
            .client
            .delete_ip_set()
            .name(&set.name)
            .id(&set.id)
            .scope(self.scope.clone());
        delete.set_lock_token(lock).send().await.unwrap();
    }

    async fn description(&self, set: &SetId) -> Option<String> {
        self.get(set).await.ip_set.unwrap().description
    }

    async fn get(&self, set: &SetId) -> aws_sdk_wafv2::operation::get_ip_set::GetIpSetOutput {
        let get = self
            .client
            .get_ip_set()
            .name(&set.name)
            .id(&set.id)
            .scope(self.scope.clone());
        get.send().await.unwrap()
    }
}
