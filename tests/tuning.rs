//! Limits that history suggests, and policies compared.

use std::collections::BTreeSet;

use analyzer::Client;
use palisade::traffic;
use toml_edit::{DocumentMut, value};

use crate::cli::{Place, check};

/// The demo's logs in `logs`, and its policy, with what its operator allows, in `policy.toml`.
fn place(seed: u64) -> Place {
    let place = Place::new();
    traffic::deliver(&traffic::hour(seed).requests, &place.path("logs"), seed).unwrap();
    let allow = "\n[[allow]]\ncidr = \"203.0.113.200/32\"\nnote = \"our own scanner\"\n";
    place.write("policy.toml", format!("{}{allow}", analyzer::DEFAULT_POLICY));
    place
}

/// The same policy with every limit replaced.
fn with_limits(place: &Place, name: &str, limit: impl Fn(&str, i64) -> i64) {
    let text = std::fs::read_to_string(place.path("policy.toml")).unwrap();
    let mut document: DocumentMut = text.parse().unwrap();
    for rule in document["rule"].as_array_of_tables_mut().unwrap().iter_mut() {
        let name = rule["name"].as_str().unwrap().to_owned();
        let now = rule["limit"].as_integer().unwrap();
        rule["limit"] = value(limit(&name, now));
    }
    place.write(name, document.to_string());
}

/// The clients that a policy bans.
fn banned(place: &Place, policy: &str) -> BTreeSet<String> {
    let output = place.run(&format!("-q replay --json logs --policy {policy}"));
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines
        .filter(|line| line["type"] == "ban")
        .map(|line| line["client"].as_str().unwrap().to_owned())
        .collect()
}

fn attackers(seed: u64) -> BTreeSet<String> {
    let known = traffic::hour(seed).known.into_iter().filter(|known| known.attacker);
    known.map(|known| Client::of(known.client, 64).to_string()).collect()
}

#[test]
fn tune_finds_limits_that_ban_all_attackers_of_the_demo_and_no_one_else() {
    for seed in [1, 2, 3, 4, 5] {
        let place = place(seed);
        let attackers = attackers(seed);
        assert_eq!(attackers.len(), 8);
        // From limits that are right, far too strict, and far too lax. A trap that needs more than one request is none.
        with_limits(&place, "strict.toml", |_, _| 1);
        with_limits(&place, "lax.toml", |name, now| match name {
            "trap" => now,
            "many-distinct-uris" | "credential-stuffing" => 1_024,
            _ => now * 1_000,
        });
        for start in ["strict.toml", "lax.toml"] {
            assert_ne!(banned(&place, start), attackers, "{start} would do as it is");
        }
        for start in ["policy.toml", "strict.toml", "lax.toml"] {
            let told = place.told(&format!("tune logs --policy {start} --write tuned-{start}"));
            assert!(told.contains("exit 0"), "{told}");
            assert_eq!(
                banned(&place, &format!("tuned-{start}")),
                attackers,
                "seed {seed}, from {start}"
            );
        }
    }
}

#[test]
fn tune_shows_what_clients_do_and_what_every_limit_would_have_cost() {
    let place = place(1);
    check("tune", &place.told("tune logs --policy policy.toml"));
    check("tune-json", &place.told("tune logs --policy policy.toml --json"));
}

#[test]
fn tune_says_when_history_cannot_tell() {
    let place = Place::new();
    // Everybody does a little more than the next one: there is no gap anywhere, and no attacker to be found.
    let mut requests = Vec::new();
    for client in 1..=40u8 {
        let address = std::net::IpAddr::from([198, 51, 100, client]);
        for n in 0..i64::from(client) {
            let sent = traffic::Sent::new(traffic::HOUR_BEGINS_MS + n * 1_000, address);
            let (method, uri) = ("POST", "/login".to_owned());
            requests.push(traffic::Sent { method, uri, ..sent });
        }
    }
    requests.sort_by_key(|sent| sent.timestamp_ms);
    traffic::deliver(&requests, &place.path("logs"), 1).unwrap();
    let rule = |limit: u32| {
        format!(
            "[[rule]]\nname = \"logins\"\nwhy = \"x\"\nmatch = {{ method = \"POST\" }}\nlimit = {limit}\nwindow = \"5m\"\n\n  [[rule.test]]\n  name = \"t\"\n  sends = [{{ client = \"192.0.2.1\", method = \"POST\", times = {limit} }}]\n  banned = [\"192.0.2.1\"]\n"
        )
    };
    place.write("few.toml", rule(39));
    place.write("many.toml", rule(20));
    place.write("none.toml", rule(500));
    check(
        "tune-no-gap",
        &place.told("tune logs --policy few.toml --write few-tuned.toml"),
    );
    check(
        "tune-too-many",
        &place.told("tune logs --policy many.toml --write many-tuned.toml"),
    );
    check("tune-nobody", &place.told("tune logs --policy none.toml"));
    check(
        "tune-written",
        &std::fs::read_to_string(place.path("many-tuned.toml")).unwrap(),
    );
    check(
        "tune-again",
        &place.told("tune logs --policy many.toml --write many-tuned.toml"),
    );
    assert_eq!(banned(&place, "many-tuned.toml").len(), 0);
}

#[test]
fn diff_shows_who_is_banned_by_one_policy_and_not_by_the_other() {
    let place = place(1);
    place.write("default.toml", analyzer::DEFAULT_POLICY);
    with_limits(&place, "new.toml", |name, now| match name {
        "login-brute-force" => 100,
        "many-distinct-uris" => 90,
        _ => now,
    });
    let text = std::fs::read_to_string(place.path("new.toml")).unwrap();
    let challenged = text.replacen(
        "ladder = [\"15m\", \"1h\"",
        "ladder = [{ for = \"30m\", action = \"challenge\" }, \"1h\"",
        1,
    );
    assert_ne!(text, challenged);
    place.write("new.toml", challenged);
    check("diff", &place.told("diff default.toml new.toml logs"));
    check("diff-json", &place.told("diff default.toml new.toml logs --json"));
    check("diff-same", &place.told("diff policy.toml policy.toml logs"));
    // A policy that counts something else is counted beside it.
    place.write(
        "hops.toml",
        "[client]\nip = { header = \"x-forwarded-for\", trusted_hops = 1 }\n",
    );
    check("diff-client", &place.told("diff policy.toml hops.toml logs"));
    let rule =
        "[[rule]]\nname = \"any-login\"\nwhy = \"x\"\nmatch = { uri = \"*/login\" }\nlimit = 20\nwindow = \"5m\"\n";
    place.write("other.toml", rule);
    check("diff-other", &place.told("diff policy.toml other.toml logs"));
    // Exit codes are those of every command.
    place.write("wrong.toml", "limt = 1");
    assert_eq!(place.run("diff policy.toml wrong.toml logs").status.code(), Some(3));
    assert_eq!(place.run("diff policy.toml logs").status.code(), Some(2));
    assert_eq!(place.run("diff policy.toml new.toml missing").status.code(), Some(1));
    assert_eq!(
        place.run("diff policy.toml new.toml missing logs").status.code(),
        Some(4)
    );
}
