//! The stand-in refuses what WAF refuses. Each line here is a rule that plain ministack does not have.

use aws_sdk_wafv2::Client;
use aws_sdk_wafv2::error::ProvideErrorMetadata;
use aws_sdk_wafv2::types::{
    CountAction, IpAddressVersion, IpSetReferenceStatement, Rule, RuleAction, Scope, Statement, VisibilityConfig,
};
use serde_json::json;
use updater::{Family, SetId};

use super::{Api, Console, StandIn, many, networks, unique};

const REGIONAL: Scope = Scope::Regional;

/// A client, a set that holds `192.0.2.1/32` or `2001:db8::/64`, and its lock token.
async fn with_set(aws: &StandIn, family: Family) -> (Console, SetId, String) {
    let console = Console::new(aws, "eu-central-1", REGIONAL);
    let content = networks(if family == Family::V4 {
        "192.0.2.1/32"
    } else {
        "2001:db8::/64"
    });
    let set = console
        .create(&unique("strict"), family, &content, Some("Banned clients"))
        .await;
    let lock = console.get(&set).await.lock_token.unwrap();
    (console, set, lock)
}

/// Updates a set, and says what the stand-in has against it.
async fn update(client: &Client, name: &str, id: &str, lock: &str, addresses: &[&str]) -> Result<String, String> {
    let update = client
        .update_ip_set()
        .name(name)
        .id(id)
        .scope(REGIONAL)
        .lock_token(lock);
    let update = update.set_addresses(Some(addresses.iter().map(|&address| address.to_owned()).collect()));
    match update.send().await {
        Ok(answer) => Ok(answer.next_lock_token.unwrap()),
        Err(error) => Err(error.code().unwrap().to_owned()),
    }
}

#[tokio::test]
async fn a_lock_token_works_once() {
    let Some(aws) = StandIn::shared() else { return };
    let (Console { client, .. }, SetId { name, id }, lock) = with_set(aws, Family::V4).await;
    let next = update(&client, &name, &id, &lock, &["192.0.2.2/32"]).await.unwrap();
    let stale = Err("WAFOptimisticLockException".to_owned());
    assert_eq!(update(&client, &name, &id, &lock, &[]).await, stale);
    assert_eq!(update(&client, &name, &id, "made-up", &[]).await, stale);
    let delete = client
        .delete_ip_set()
        .name(&name)
        .id(&id)
        .scope(REGIONAL)
        .lock_token(&lock)
        .send()
        .await;
    assert!(
        delete
            .unwrap_err()
            .into_service_error()
            .is_waf_optimistic_lock_exception()
    );
    assert!(update(&client, &name, &id, &next, &[]).await.is_ok());
}

#[tokio::test]
async fn a_set_is_named_by_name_and_id() {
    let Some(aws) = StandIn::shared() else { return };
    let (Console { client, .. }, SetId { name, id }, lock) = with_set(aws, Family::V4).await;
    let missing = Err("WAFNonexistentItemException".to_owned());
    assert_eq!(update(&client, "another", &id, &lock, &[]).await, missing);
    assert_eq!(
        update(&client, &name, "00000000-0000-4000-8000-000000000000", &lock, &[]).await,
        missing
    );
    let get = client.get_ip_set().name("another").id(&id).scope(REGIONAL).send().await;
    assert!(
        get.unwrap_err()
            .into_service_error()
            .is_waf_nonexistent_item_exception()
    );
    let create = client
        .create_ip_set()
        .name(&name)
        .scope(REGIONAL)
        .ip_address_version(IpAddressVersion::Ipv4);
    let create = create.set_addresses(Some(Vec::new())).send().await;
    assert!(
        create
            .unwrap_err()
            .into_service_error()
            .is_waf_duplicate_item_exception()
    );
}

#[tokio::test]
async fn addresses_are_networks_of_the_sets_family() {
    let Some(aws) = StandIn::shared() else { return };
    let check = async |family, refused: &[&str]| {
        let (console, SetId { name, id }, lock) = with_set(aws, family).await;
        for address in refused {
            let answer = update(&console.client, &name, &id, &lock, &["198.51.100.1/32", address]).await;
            assert_eq!(answer, Err("WAFInvalidParameterException".to_owned()), "{address}");
        }
        let unchanged = console.get(&SetId { name, id }).await;
        assert_eq!(
            (unchanged.lock_token.unwrap(), unchanged.ip_set.unwrap().addresses.len()),
            (lock, 1)
        );
    };
    let bad = [
        "192.0.2.1",
        "192.0.2.1/33",
        "192.0.2.1-192.0.2.9",
        "somewhere/24",
        "",
        "195.178.188.66/29",
        "0.0.0.0/0",
    ];
    check(Family::V4, &bad).await;
    check(Family::V4, &["2001:db8::/64", "198.51.100.1/32"]).await;
    check(Family::V6, &["192.0.2.1/32"]).await;

    let (console, SetId { name, id }, lock) = with_set(aws, Family::V6).await;
    for address in ["::/0", "2001:db8::1/64", "2001:db8::1", "2001:db8::/129"] {
        let answer = update(&console.client, &name, &id, &lock, &[address]).await;
        assert_eq!(answer, Err("WAFInvalidParameterException".to_owned()), "{address}");
    }
}

#[tokio::test]
async fn a_refused_address_is_named() {
    let Some(aws) = StandIn::shared() else { return };
    let (console, set, lock) = with_set(aws, Family::V4).await;
    let update = console
        .client
        .update_ip_set()
        .name(set.name)
        .id(set.id)
        .scope(REGIONAL)
        .lock_token(lock);
    let error = update
        .addresses("0.0.0.0/0")
        .send()
        .await
        .unwrap_err()
        .into_service_error();
    let aws_sdk_wafv2::operation::update_ip_set::UpdateIPSetError::WafInvalidParameterException(error) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error.field().unwrap().as_str(), "IP_ADDRESS");
    assert_eq!(error.parameter(), Some("0.0.0.0/0"));
    assert_eq!(
        error.reason(),
        Some("The parameter contains formatting that is not valid.")
    );
}

#[tokio::test]
async fn ten_thousand_addresses_fit_and_one_more_does_not() {
    let Some(aws) = StandIn::shared() else { return };
    let (Console { client, .. }, SetId { name, id }, lock) = with_set(aws, Family::V4).await;
    let addresses: Vec<String> = many(Family::V4, 10_001).iter().map(ToString::to_string).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let too_many = Err("WAFLimitsExceededException".to_owned());
    assert_eq!(update(&client, &name, &id, &lock, &addresses).await, too_many);
    assert!(update(&client, &name, &id, &lock, &addresses[1..]).await.is_ok());
}

#[tokio::test]
async fn an_update_without_a_description_erases_it() {
    let Some(aws) = StandIn::shared() else { return };
    let (console, set, lock) = with_set(aws, Family::V4).await;
    assert_eq!(console.description(&set).await.as_deref(), Some("Banned clients"));
    let empty = console
        .client
        .update_ip_set()
        .name(&set.name)
        .id(&set.id)
        .scope(REGIONAL)
        .lock_token(&lock);
    let empty = empty.set_addresses(Some(Vec::new())).description("").send().await;
    assert!(
        empty
            .unwrap_err()
            .into_service_error()
            .is_waf_invalid_parameter_exception()
    );
    update(&console.client, &set.name, &set.id, &lock, &[]).await.unwrap();
    assert_eq!(console.description(&set).await.as_deref(), Some(""));
}

#[tokio::test]
async fn cloudfront_sets_are_kept_in_one_region() {
    let Some(aws) = StandIn::shared() else { return };
    let abroad = Console::new(aws, "eu-central-1", Scope::Cloudfront);
    let list = abroad.client.list_ip_sets().scope(Scope::Cloudfront).send().await;
    assert!(
        list.unwrap_err()
            .into_service_error()
            .is_waf_invalid_parameter_exception()
    );
    let home = Console::new(aws, "us-east-1", Scope::Cloudfront);
    home.create(&unique("cloudfront"), Family::V4, &[], None).await;
}

#[tokio::test]
async fn a_region_does_not_see_the_sets_of_another() {
    let Some(aws) = StandIn::shared() else { return };
    let (_, set, _) = with_set(aws, Family::V4).await;
    let abroad = Console::new(aws, "eu-west-1", REGIONAL);
    let get = abroad
        .client
        .get_ip_set()
        .name(&set.name)
        .id(&set.id)
        .scope(REGIONAL)
        .send()
        .await;
    assert!(
        get.unwrap_err()
            .into_service_error()
            .is_waf_nonexistent_item_exception()
    );
}

#[tokio::test]
async fn sets_are_listed_in_pages() {
    let Some(aws) = StandIn::shared() else { return };
    let console = Console::new(aws, "eu-north-1", REGIONAL);
    for name in ["a", "b", "c"] {
        console.create(name, Family::V4, &[], None).await;
    }
    let page = async |marker: Option<&str>| {
        let list = console.client.list_ip_sets().scope(REGIONAL).limit(2);
        let page = list.set_next_marker(marker.map(str::to_owned)).send().await.unwrap();
        let names: Vec<_> = page
            .ip_sets()
            .iter()
            .map(|set| set.name().unwrap().to_owned())
            .collect();
        (names.concat(), page.next_marker)
    };
    assert_eq!(page(None).await, ("ab".to_owned(), Some("b".to_owned())));
    assert_eq!(page(Some("b")).await, ("c".to_owned(), Some("c".to_owned())));
    assert_eq!(page(Some("c")).await, (String::new(), None));
}

#[tokio::test]
async fn a_set_that_a_rule_uses_cannot_be_deleted() {
    let Some(aws) = StandIn::shared() else { return };
    let (console, set, lock) = with_set(aws, Family::V4).await;
    let arn = console.get(&set).await.ip_set.unwrap().arn;
    let metrics = VisibilityConfig::builder()
        .sampled_requests_enabled(true)
        .cloud_watch_metrics_enabled(true)
        .metric_name("bans")
        .build()
        .unwrap();
    let reference = IpSetReferenceStatement::builder().arn(arn).build().unwrap();
    let rule = Rule::builder()
        .name("bans")
        .priority(0)
        .statement(Statement::builder().ip_set_reference_statement(reference).build())
        .action(RuleAction::builder().count(CountAction::builder().build()).build())
        .visibility_config(metrics.clone())
        .build()
        .unwrap();
    let create = console
        .client
        .create_rule_group()
        .name(unique("group"))
        .scope(REGIONAL)
        .capacity(1);
    create.rules(rule).visibility_config(metrics).send().await.unwrap();
    let delete = console
        .client
        .delete_ip_set()
        .name(set.name)
        .id(set.id)
        .scope(REGIONAL)
        .lock_token(lock);
    assert!(
        delete
            .send()
            .await
            .unwrap_err()
            .into_service_error()
            .is_waf_associated_item_exception()
    );
}

/// CloudFormation sends a resource's template content when one of its properties changed, and leaves others alone.
#[test]
fn a_stacks_update_sends_what_the_template_says_of_what_changed() {
    let Some(aws) = StandIn::shared() else { return };
    let api = Api::new(aws, "eu-central-1");
    let set = |name: &str, description: &str| {
        json!({"Type": "AWS::WAFv2::IPSet", "Properties": {"Name": name, "Description": description, "Scope": "REGIONAL",
               "IPAddressVersion": "IPV4", "Addresses": []}})
    };
    let names = [unique("stack-quiet"), unique("stack-changed")];
    let request = |description: &str| {
        let resources = json!({"Quiet": set(&names[0], "the same"), "Changed": set(&names[1], description)});
        json!({"StackName": names[0], "TemplateBody": json!({"Resources": resources}).to_string()})
    };
    let wait = || loop {
        let found = api.ok("cloudformation", "describe_stacks", &json!({"StackName": names[0]}));
        let status = found["Stacks"][0]["StackStatus"].as_str().unwrap().to_owned();
        if !status.ends_with("IN_PROGRESS") {
            return status;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    api.ok("cloudformation", "create_stack", &request("before"));
    assert_eq!(wait(), "CREATE_COMPLETE");
    let resources = api.ok(
        "cloudformation",
        "describe_stack_resources",
        &json!({"StackName": names[0]}),
    );
    let named = |at: usize| {
        let found = resources["StackResources"].as_array().unwrap().iter();
        let id = |resource: &serde_json::Value| resource["PhysicalResourceId"].as_str().unwrap().to_owned();
        let id = found.map(id).find(|id| id.starts_with(&names[at])).unwrap();
        let parts: Vec<&str> = id.split('|').collect();
        json!({"Name": parts[0], "Id": parts[1], "Scope": parts[2]})
    };
    for at in [0, 1] {
        let mut update = named(at);
        update["LockToken"] = api.ok("wafv2", "get_ip_set", &named(at))["LockToken"].clone();
        update["Addresses"] = json!(["192.0.2.1/32"]);
        api.ok("wafv2", "update_ip_set", &update);
    }
    api.ok("cloudformation", "update_stack", &request("after"));
    assert_eq!(wait(), "UPDATE_COMPLETE");
    let addresses = |at: usize| api.ok("wafv2", "get_ip_set", &named(at))["IPSet"]["Addresses"].clone();
    assert_eq!((addresses(0), addresses(1)), (json!(["192.0.2.1/32"]), json!([])));
}

#[test]
fn logs_go_where_the_name_says_that_they_are_logs() {
    let Some(aws) = StandIn::shared() else { return };
    let api = Api::new(aws, "eu-central-1");
    let acl = "arn:aws:wafv2:eu-central-1:111122223333:regional/webacl/strict/1";
    let put = |destination: &str| {
        let configuration = json!({"ResourceArn": acl, "LogDestinationConfigs": [destination]});
        api.call(
            "wafv2",
            "put_logging_configuration",
            &json!({"LoggingConfiguration": configuration}),
        )
    };
    for destination in [
        "arn:aws:firehose:eu-central-1:111122223333:deliverystream/api",
        "arn:aws:s3:::an-api-s-logs",
    ] {
        assert_eq!(
            put(destination).unwrap_err().0,
            "WAFInvalidParameterException",
            "{destination}"
        );
    }
    put("arn:aws:firehose:eu-central-1:111122223333:deliverystream/aws-waf-logs-api").unwrap();
    put("arn:aws:s3:::aws-waf-logs-api").unwrap();
    let get = json!({"ResourceArn": acl});
    let found = api.ok("wafv2", "get_logging_configuration", &get);
    assert_eq!(
        found["LoggingConfiguration"]["LogDestinationConfigs"],
        json!(["arn:aws:s3:::aws-waf-logs-api"])
    );
    api.ok("wafv2", "delete_logging_configuration", &get);
    let gone = api.call("wafv2", "get_logging_configuration", &get);
    assert_eq!(gone.unwrap_err().0, "WAFNonexistentItemException");
}

/// Athena reads what a query's folders hold, bills that, knows its columns, and gives a thousand rows at a time.
#[tokio::test]
async fn athena_reads_the_folders_that_a_query_names_and_knows_its_columns() {
    let Some(aws) = StandIn::shared() else { return };
    let api = super::Api::new(aws, "us-east-1");
    let bucket = unique("strict-athena");
    api.ok("s3", "create_bucket", &json!({"Bucket": bucket}));
    let line = |n: u32| {
        format!(
            "{{\"timestamp\": {n}, \"httpRequest\": {{\"clientIp\": \"192.0.2.{}\"}}, \"labels\": null}}\n",
            n % 9
        )
    };
    let many: String = (0..1_500).map(line).collect();
    for (folder, body) in [
        ("2026/11/01/12/05/", many.as_str()),
        ("2026/11/01/12/10/", "no JSON\n{\"TIMESTAMP\": \"7\"}\n"),
        ("2026/11/01/12/06/", "{\"timestamp\": 1}\n"), // no five minutes begin there
        ("2026/11/01/12/05/deeper/", "{\"timestamp\": 1}\n"),
        ("2026/10/01/12/05/", "{\"timestamp\": 1}\n"), // before the table's beginning
    ] {
        api.ok(
            "s3",
            "put_object",
            &json!({"Bucket": bucket, "Key": format!("waf/{folder}x"), "Body": body}),
        );
    }
    let table = analyzer::athena::Table {
        database: "strict".into(),
        name: bucket.replace('-', "_"),
        location: format!("s3://{bucket}/waf/"),
        layout: analyzer::athena::Layout::Direct,
    };
    let since = analyzer::Minute::of_ms(1_793_491_200_000); // 2026-11-01
    let ddl = analyzer::athena::ddl(&table, since, analyzer::athena::Dialect::Athena).unwrap();
    let ask = async |sql: &str| -> (String, serde_json::Value) {
        let start =
            json!({"QueryString": sql, "ResultConfiguration": {"OutputLocation": format!("s3://{bucket}/results/")}});
        let id = api.ok("athena", "start_query_execution", &start)["QueryExecutionId"].clone();
        loop {
            let execution =
                api.ok("athena", "get_query_execution", &json!({"QueryExecutionId": id}))["QueryExecution"].clone();
            let state = execution["Status"]["State"].as_str().unwrap().to_owned();
            if !["QUEUED", "RUNNING"].contains(&state.as_str()) {
                return (state, execution);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    assert_eq!(ask("CREATE DATABASE IF NOT EXISTS `strict`").await.0, "SUCCEEDED");
    assert_eq!(ask(&ddl).await.0, "SUCCEEDED");
    let from = format!("FROM strict.{} WHERE log_time >= '2026/11/01/12/00'", table.name);
    let first = |execution: &serde_json::Value| {
        let results = api.ok(
            "athena",
            "get_query_results",
            &json!({"QueryExecutionId": execution["QueryExecutionId"]}),
        );
        (results["ResultSet"]["Rows"].clone(), results["NextToken"].clone())
    };

    let (state, all) = ask(&format!(
        "SELECT \"timestamp\", httprequest.clientip {from} AND log_time <= '2026/11/01/12/05'"
    ))
    .await;
    assert_eq!(
        (state.as_str(), &all["Statistics"]["DataScannedInBytes"]),
        ("SUCCEEDED", &json!(many.len()))
    );
    let (rows, next) = first(&all);
    assert_eq!(
        (rows.as_array().unwrap().len(), next.is_string()),
        (1_000, true),
        "the names are one of the thousand"
    );
    let too_many = json!({"QueryExecutionId": all["QueryExecutionId"], "MaxResults": 1_001});
    assert!(api.call("athena", "get_query_results", &too_many).is_err());

    // A line that is no JSON is a row of nothing; names are in any case, and a number may be text.
    let (_, odd) = ask(&format!(
        "SELECT \"timestamp\" {from} AND log_time = '2026/11/01/12/10' ORDER BY 1"
    ))
    .await;
    assert_eq!(
        first(&odd).0,
        json!([{"Data": [{"VarCharValue": "timestamp"}]}, {"Data": [{"VarCharValue": "7"}]}, {"Data": [{}]}])
    );
    let (_, everything) = ask(&format!("SELECT count(*) AS n FROM strict.{}", table.name)).await;
    assert_eq!(first(&everything).0[1], json!({"Data": [{"VarCharValue": "1502"}]}));

    for (sql, reason) in [
        (format!("SELECT nonsense {from}"), "COLUMN_NOT_FOUND"),
        ("SELECT 1 FROM strict.elsewhere".to_owned(), "TABLE_NOT_FOUND"),
        ("SELECT FROM WHERE".to_owned(), "SYNTAX_ERROR"),
    ] {
        let (state, failed) = ask(&sql).await;
        let said = failed["Status"]["StateChangeReason"].as_str().unwrap();
        assert!(state == "FAILED" && said.contains(reason), "{state}: {said}");
    }
    let nowhere = json!({"CatalogName": "AwsDataCatalog", "DatabaseName": "strict", "TableName": "elsewhere"});
    assert_eq!(
        api.call("athena", "get_table_metadata", &nowhere).unwrap_err().0,
        "MetadataException"
    );
}
