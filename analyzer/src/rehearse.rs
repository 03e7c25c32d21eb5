//! Runs the tests that a policy carries.
//!
//! A test is a story about one rule: what clients send, and whom the rule bans. It is judged by the same judge as logs
//! are, with the whole policy but this rule alone, so that one rule's story never hides behind another's.

use std::collections::BTreeSet;

use ingest::{Header, Request};

use crate::client::{Client, parse_cidr};
use crate::judge::{Verdict, judge_history};
use crate::ledger::Ledger;
use crate::policy::{OneOrMany, Policy, Rule, RuleTest, Sends};
use crate::tally::Tally;

/// How one test of one rule went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsal {
    /// The rule's name.
    pub rule: String,
    /// The test's name.
    pub test: String,
    /// What came out differently, one sentence each; empty when the test passed.
    pub failures: Vec<String>,
}

/// Runs every test of every rule, in order.
pub fn rehearse(policy: &Policy) -> Vec<Rehearsal> {
    let mut rehearsals = Vec::new();
    for rule in &policy.rules {
        let alone = Policy {
            rules: vec![rule.clone()],
            ..policy.clone()
        };
        for test in &rule.tests {
            let failures = failures(&alone, test);
            rehearsals.push(Rehearsal {
                rule: rule.name.clone(),
                test: test.name.clone(),
                failures,
            });
        }
    }
    rehearsals
}

fn failures(policy: &Policy, test: &RuleTest) -> Vec<String> {
    let mut tally = Tally::default();
    for sends in &test.sends {
        send(policy, sends, &mut tally);
    }
    let (mut banned, mut spared, mut alerted) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    judge_history(policy, &tally, Ledger::default(), |_, judgment| {
        for verdict in &judgment.verdicts {
            match verdict {
                Verdict::Ban(charge, _) => banned.insert(charge.client),
                Verdict::Spared(charge, _) | Verdict::Held(charge, _) => spared.insert(charge.client),
                Verdict::Alert(charge) => alerted.insert(charge.client),
                Verdict::Crowd(_) => false,
            };
        }
    });
    let mut failures = Vec::new();
    let rule = &policy.rules[0];
    let mut compare = |what: &str, expected: Option<&Vec<String>>, got: &BTreeSet<Client>| {
        let Some(expected) = expected else { return };
        let prefix = policy.client.ipv6_prefix;
        let expected: BTreeSet<Client> = expected
            .iter()
            .filter_map(|text| parse_cidr(text).ok())
            .map(|net| Client::of(net.addr(), prefix))
            .collect();
        for client in expected.difference(got) {
            failures.push(format!(
                "{client} should be {what}, and is not{}",
                evidence(policy, &tally, rule, *client)
            ));
        }
        for client in got.difference(&expected) {
            failures.push(format!(
                "{client} is {what}, and should not be{}",
                evidence(policy, &tally, rule, *client)
            ));
        }
    };
    compare("banned", Some(&test.banned), &banned);
    compare("spared", test.spared.as_ref(), &spared);
    compare("alerted", test.alerted.as_ref(), &alerted);
    failures
}

/// How near the client came to the limit, for the reader of a failed test.
fn evidence(policy: &Policy, tally: &Tally, rule: &Rule, client: Client) -> String {
    use crate::time::Minute;
    let end = Minute(u32::MAX);
    let requests = tally.requests_of(client, Minute(0), end);
    let matched = tally.cells(client).map_or(0, |cells| {
        cells.sum(crate::tally::Slot::of_rule(0, rule), Minute(0), end)
    });
    let spares = policy
        .spares(client)
        .map(|because| format!("; {because}"))
        .unwrap_or_default();
    format!(
        " ({matched} of its {requests} requests match; the limit is {} in {}{spares})",
        rule.limit, rule.window
    )
}

/// When every test begins: any minute will do, as long as it is always the same.
const TEST_BEGINS_MS: i64 = 1_767_225_600_000;

/// An ordinary browser's.
const ORDINARY_USER_AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

fn send(policy: &Policy, sends: &Sends, tally: &mut Tally) {
    let numbered = |text: &str, n: u32| text.replace("{n}", &n.to_string());
    let begins = TEST_BEGINS_MS + i64::from(sends.after.map_or(0, |after| after.0)) * 60_000;
    let over = i64::from(sends.over.map_or(1, |over| over.0)) * 60_000;
    let Ok(client_ip) = sends.client.parse() else { return };
    for n in 0..sends.times {
        let text = |text: &Option<String>, ordinary: &str| numbered(text.as_deref().unwrap_or(ordinary), n);
        let mut headers: Vec<Header<'_>> = sends
            .header
            .iter()
            .map(|(name, value)| Header {
                name: name.into(),
                value: numbered(value, n).into(),
            })
            .collect();
        let user_agent = text(&sends.user_agent, ORDINARY_USER_AGENT);
        if !user_agent.is_empty() {
            headers.push(Header {
                name: "user-agent".into(),
                value: user_agent.into(),
            });
        }
        let OneOrMany(labels) = &sends.label;
        let request = Request {
            timestamp_ms: begins + over * i64::from(n) / i64::from(sends.times),
            action: text(&sends.action, "ALLOW").into(),
            waf_rule: text(&sends.waf_rule, "Default_Action").into(),
            client_ip,
            country: sends.country.as_deref().map(Into::into),
            method: text(&sends.method, "GET").into(),
            uri: text(&sends.uri, "/").into(),
            args: text(&sends.args, "").into(),
            host: Some(text(&sends.host, "api.example.com").into()),
            headers,
            labels: labels.iter().map(Into::into).collect(),
            ja3: sends.ja3.as_deref().map(Into::into),
            ja4: sends.ja4.as_ref().map(|ja4| numbered(ja4, n).into()),
            response_code: sends.response_code,
            ..Request::default()
        };
        tally.count(policy, &request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_passes_its_own_tests_and_every_rule_has_both_kinds() {
        let policy = Policy::default_policy();
        let failed: Vec<Rehearsal> = rehearse(&policy)
            .into_iter()
            .filter(|rehearsal| !rehearsal.failures.is_empty())
            .collect();
        assert_eq!(failed, []);
        for rule in &policy.rules {
            assert!(
                rule.tests
                    .iter()
                    .any(|test| !test.banned.is_empty() || test.alerted.is_some()),
                "`{}` has no test that it bans",
                rule.name
            );
            assert!(
                rule.tests.iter().any(|test| test.banned.is_empty()),
                "`{}` has no test that it spares",
                rule.name
            );
        }
    }

    #[test]
    fn a_test_that_tells_the_story_wrong_fails_and_says_how_near_it_was() {
        let policy = Policy::parse(
            r#"
            [[rule]]
            name = "two"
            why = "Two of them."
            match = { uri = "/x" }
            limit = 2
            window = "1m"
              [[rule.test]]
              name = "one is enough"
              sends = [{ client = "192.0.2.1", uri = "/x" }, { client = "192.0.2.2", uri = "/x", times = 2 }]
              banned = ["192.0.2.1"]
            "#,
        )
        .unwrap();
        let failures = &rehearse(&policy)[0].failures;
        assert_eq!(
            failures,
            &[
                "192.0.2.1/32 should be banned, and is not (1 of its 1 requests match; the limit is 2 in 1m)",
                "192.0.2.2/32 is banned, and should not be (2 of its 2 requests match; the limit is 2 in 1m)"
            ]
        );
    }
}
