//! What only the real adapter can do, or get wrong.

use std::slice;

use aws_sdk_wafv2::types;
use updater::{Family, IpSets, Options, Scope, SetId, Wafv2, reconcile};

use super::{Console, StandIn, networks, unique};

fn both(aws: &StandIn, region: &'static str) -> (Wafv2, Console) {
    (
        Wafv2::new(&aws.config(region), Scope::Regional),
        Console::new(aws, region, types::Scope::Regional),
    )
}

#[tokio::test]
async fn a_description_survives_our_updates() {
    let Some(aws) = StandIn::shared() else { return };
    let (wafv2, console) = both(aws, "eu-central-1");
    let check = async |description: Option<&str>| {
        let set = console.create(&unique("described"), Family::V4, &[], description).await;
        let lock = wafv2.get(&set).await.unwrap().lock_token;
        wafv2.update(&set, &networks("192.0.2.1/32"), &lock).await.unwrap();
        assert_eq!(
            console.description(&set).await.unwrap(),
            description.unwrap_or_default()
        );

        // Another adapter, as after a restart, that never read this set.
        let lock = wafv2.get(&set).await.unwrap().lock_token;
        Wafv2::new(&aws.config("eu-central-1"), Scope::Regional)
            .update(&set, &[], &lock)
            .await
            .unwrap();
        assert_eq!(
            console.description(&set).await.unwrap(),
            description.unwrap_or_default()
        );
    };
    check(Some("Banned by Palisade: see the runbook")).await;
    check(None).await;
}

#[tokio::test]
async fn a_set_is_found_by_its_name_on_any_page() {
    let Some(aws) = StandIn::shared() else { return };
    let (wafv2, console) = both(aws, "ap-south-1");
    assert_eq!(wafv2.find("bans").await, Ok(None), "there are no sets at all");
    for index in 0..105 {
        console.create(&format!("bans-{index:03}"), Family::V4, &[], None).await;
    }
    for name in ["bans-000", "bans-099", "bans-100", "bans-104"] {
        let found = wafv2.find(name).await.unwrap().unwrap();
        assert_eq!(found.name, name);
        assert!(wafv2.get(&found).await.is_ok());
    }
    assert_eq!(wafv2.find("bans-1").await, Ok(None), "a part of a name is not the name");
}

#[tokio::test]
async fn the_sets_of_cloudfront_are_reached_from_every_region() {
    let Some(aws) = StandIn::shared() else { return };
    let console = Console::new(aws, "us-east-1", types::Scope::Cloudfront);
    let set = console.create(&unique("cloudfront"), Family::V6, &[], None).await;
    let wafv2 = Wafv2::new(&aws.config("eu-central-1"), Scope::Cloudfront);
    assert_eq!(wafv2.find(&set.name).await, Ok(Some(set.clone())));
    let lock = wafv2.get(&set).await.unwrap().lock_token;
    wafv2.update(&set, &networks("2001:db8::/64"), &lock).await.unwrap();
    assert_eq!(wafv2.get(&set).await.unwrap().addresses, networks("2001:db8::/64"));
}

#[tokio::test]
async fn a_set_that_is_gone_is_said_to_be_gone() {
    let Some(aws) = StandIn::shared() else { return };
    let (wafv2, console) = both(aws, "eu-central-1");
    let set = console.create(&unique("gone"), Family::V4, &[], None).await;
    let lock = wafv2.get(&set).await.unwrap().lock_token;
    console.delete(&set).await;
    // As a deployment does that replaces the set: the name is there again, and the id is another one.
    console.create(&set.name, Family::V4, &[], None).await;

    let gone = "there is no IP set of this name and id: it was deleted, renamed or created anew";
    assert_eq!(wafv2.get(&set).await.unwrap_err().to_string(), gone);
    assert_eq!(wafv2.update(&set, &[], &lock).await.unwrap_err().to_string(), gone);
    let options = Options {
        family: Family::V4,
        exclusive: false,
    };
    let pause = async |_| panic!("waiting does not bring it back");
    let error = reconcile(
        &wafv2,
        slice::from_ref(&set),
        &networks("192.0.2.1/32"),
        &[],
        &options,
        pause,
    )
    .await
    .unwrap_err();
    assert_eq!(error.to_string(), format!("read IP set `{set}`"));
}

#[tokio::test]
async fn nobody_listening_is_no_empty_set() {
    let Some(aws) = StandIn::shared() else { return };
    let config = aws
        .config("eu-central-1")
        .into_builder()
        .endpoint_url("http://127.0.0.1:9")
        .build();
    let error = Wafv2::new(&config, Scope::Regional)
        .get(&SetId::new("bans", "id"))
        .await
        .unwrap_err();
    assert!(error.is_retryable());
    assert!(
        error.to_string().starts_with("no answer to `wafv2:GetIPSet`: "),
        "{error}"
    );
}
