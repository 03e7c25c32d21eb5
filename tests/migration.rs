//! From the solution that retires: the same clients stay banned until the same minute.

use std::collections::BTreeMap;
use std::net::IpAddr;

use analyzer::{Ledger, Minute, Policy, Span};
use ipnet::IpNet;
use palisade::migrate::{Kind, Migration, migrate};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::cli::{Place, check};

/// 2026-11-01T12:00:00Z.
const NOW: Minute = Minute(29_892_240);

fn ip_set(name: &str, addresses: &[&str]) -> Value {
    // As `aws wafv2 get-ip-set` prints it.
    json!({
        "IPSet": {
            "Name": name, "Id": "a1b2", "ARN": format!("arn:aws:wafv2:eu-central-1:111122223333:regional/ipset/{name}/a1b2"),
            "Description": "", "IPAddressVersion": if name.ends_with('6') { "IPV6" } else { "IPV4" }, "Addresses": addresses,
        },
        "LockToken": "c3d4",
    })
}

fn waf_conf() -> Value {
    json!({
        "general": { "requestThreshold": 100, "blockPeriod": 240, "ignoredSufixes": [".css", ".js"] },
        "uriList": { "/login": { "requestThreshold": 10, "blockPeriod": 60 }, "/app.js": { "requestThreshold": 5 } },
    })
}

fn app_conf() -> Value {
    json!({
        "general": { "errorThreshold": 50, "blockPeriod": 240, "errorCodes": ["400", "401", "403", "404", "405"] },
        "uriList": {},
    })
}

fn entry(count: u64, updated_at: &str) -> Value {
    json!({ "max_counter_per_min": count, "updated_at": updated_at })
}

fn files(files: &[(&str, Value)]) -> Vec<(String, Vec<u8>)> {
    let file = |(name, value): &(&str, Value)| ((*name).to_owned(), serde_json::to_vec(value).unwrap());
    files.iter().map(file).collect()
}

fn migrated(given: &[(&str, Value)]) -> Migration {
    migrate(&files(given), NOW, None).unwrap()
}

/// The networks that would be in the IP sets at this minute.
fn wanted(migration: &Migration, now: Minute) -> Vec<IpNet> {
    let policy = Policy::parse(&migration.policy).unwrap();
    // As it comes back from the state.
    let ledger = Ledger::from_json(migration.ledger.to_json().as_bytes()).unwrap();
    assert_eq!(ledger, migration.ledger);
    ledger.wanted(&policy, now).into_iter().map(|(net, _)| net).collect()
}

fn banned(migration: &Migration, address: &str, now: Minute) -> bool {
    let address: IpAddr = address.parse().unwrap();
    wanted(migration, now).iter().any(|net| net.contains(&address))
}

/// The old stack of the whole story, as files.
fn everything(place: &Place) {
    let state = json!({
        "general": {
            "203.0.113.7": entry(715, "2026-11-01 10:16:11 UTC+0000"),
            "203.0.113.8": entry(120, "2026-11-01 07:59:59 UTC+0000"),
            "203.0.113.9": entry(80, "2026-11-01 11:50:00 UTC+0000"),
            "198.51.100.200": entry(900, "2026-11-01 11:50:00 UTC+0000"),
            "10.0.0.7": entry(900, "2026-11-01 11:50:00 UTC+0000"),
            "2001:db8:1:2::3": entry(300, "2026-11-01 11:30:59 UTC+0000"),
            "not an address": entry(300, "2026-11-01 11:30:59 UTC+0000"),
            "203.0.113.10": { "max_counter_per_min": 300 },
        },
        "uriList": {
            "/login": { "198.51.100.1": entry(20, "2026-11-01 11:59:00 UTC+0000") },
            "/gone": { "198.51.100.2": entry(20, "2026-11-01 11:59:00 UTC+0000") },
        },
    });
    let write = |name: &str, value: &Value| place.write(name, serde_json::to_vec_pretty(value).unwrap());
    write("old/shop-waf_log_conf.json", &waf_conf());
    write("old/shop-waf_log_out.json", &state);
    write("old/shop-app_log_conf.json", &app_conf());
    for (file, set, addresses) in [
        ("whitelist-v4", "shopWhitelistSetIPV4", ["198.51.100.200/32"].as_slice()),
        ("whitelist-v6", "shopWhitelistSetIPV6", &[]),
        (
            "blacklist-v4",
            "shopBlacklistSetIPV4",
            &["198.51.100.192/28", "192.0.2.0/24"],
        ),
        (
            "flood-v4",
            "shopHTTPFloodSetIPV4",
            &["203.0.113.7/32", "203.0.113.77/32"],
        ),
        ("probes-v4", "shopScannersProbesSetIPV4", &["203.0.113.99/32"]),
        ("bots-v6", "shopIPBadBotSetIPV6", &["2001:db8:bad::1/128"]),
        (
            "lists-v4",
            "shopIPReputationListsSetIPV4",
            &["192.0.2.0/25", "203.0.113.64/26"],
        ),
    ] {
        write(&format!("old/{file}.json"), &ip_set(set, addresses));
    }
}

#[test]
fn migrate_says_line_by_line_what_becomes_of_what() {
    let place = Place::new();
    everything(&place);
    check("migrate", &place.told("migrate old --state new --now 2026-11-01T12:00"));
    let policy = std::fs::read_to_string(place.path("new/policy.toml")).unwrap();
    let (ours, _) = policy.split_once("# From the default policy").unwrap();
    check("migrate-policy", ours);
    check(
        "migrate-ledger",
        &std::fs::read_to_string(place.path("new/ledger.json")).unwrap(),
    );
    check("migrate-check", &place.told("check new/policy.toml"));
    check(
        "migrate-status",
        &place.told("status --state new --now 2026-11-01T12:00"),
    );
    let lines = place.told("migrate old --state json --now 2026-11-01T12:00 --json");
    check("migrate-json", &lines);
    for file in ["policy.toml", "ledger.json"] {
        let read = |state: &str| std::fs::read_to_string(place.path(state).join(file)).unwrap();
        assert_eq!(read("json"), read("new"), "{file}");
    }
    // Nothing is ever overwritten.
    check(
        "migrate-again",
        &place.told("migrate old --state new --now 2026-11-01T12:00"),
    );
}

#[test]
fn files_that_are_not_the_old_solutions_are_named_and_the_rest_is_migrated() {
    let place = Place::new();
    everything(&place);
    place.write("old/README.md", "# our notes");
    place.write("old/package.json", "{\"name\":\"x\"}");
    place.write("old/other-set.json", ip_set("partners", &["192.0.2.1/32"]).to_string());
    place.write(
        "old/half-v6.json",
        ip_set("shopBlacklistSetIPV6", &["2001:db8::/32", "2001:db8::1/33", "x"]).to_string(),
    );
    let output = place.run("-q migrate old --state new --now 2026-11-01T12:00 --json");
    assert_eq!(output.status.code(), Some(4));
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    let summary: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(summary["problems"].as_array().unwrap().len(), 5, "{summary}");
    check("migrate-strangers", &String::from_utf8(output.stderr).unwrap());
    let ledger = std::fs::read_to_string(place.path("new/ledger.json")).unwrap();
    assert!(
        ledger.contains("203.0.113.7/32") && ledger.contains("2001:db8::/32"),
        "{ledger}"
    );
    place.write("empty/readme.txt", "nothing");
    check("migrate-nothing", &place.told("migrate empty --state other"));
    check("migrate-missing", &place.told("migrate missing --state other"));
    assert!(!place.path("other").exists());
}

#[test]
fn a_running_ban_ends_in_the_minute_in_which_the_old_solution_would_have_ended_it() {
    // The shape, the address and the count are those of the field notes.
    let state = json!({
        "general": { "203.0.113.7": entry(715, "2023-04-24 22:16:11 UTC+0000") },
        "uriList": { "/login": { "198.51.100.1": entry(20, "2023-04-24 22:17:59 UTC+0000") } },
    });
    let given = files(&[("s-waf_log_conf.json", waf_conf()), ("s-waf_log_out.json", state)]);
    // 2023-04-25T02:16:00Z, when the first ends.
    let end = Minute(28_039_816);
    assert_eq!(end.to_string(), "2023-04-25T02:16:00Z");
    let migration = migrate(&given, end - Span(200), None).unwrap();
    for (address, end) in [("203.0.113.7", end), ("198.51.100.1", end + Span(1))] {
        assert!(banned(&migration, address, end - Span(200)));
        assert!(banned(&migration, address, end - Span(1)), "{address} a minute before");
        assert!(!banned(&migration, address, end), "{address} in its last minute");
    }
    // As of the minute of its end it is over, and nothing is carried over.
    let over = migrate(&given, end + Span(1), None).unwrap();
    assert!(over.ledger.offenders.is_empty());
    assert_eq!(
        over.lines
            .iter()
            .filter(|line| line.now == "its block period is over")
            .count(),
        2
    );
}

#[test]
fn a_count_at_the_threshold_blocks_and_of_two_entries_the_longer_one_lasts() {
    let state = |first: &str, second: &str| {
        json!({
            "general": { "198.51.100.1": entry(100, first), "198.51.100.2": entry(99, first) },
            "uriList": { "/login": { "198.51.100.1": entry(10, second) } },
        })
    };
    let (early, late) = ("2026-11-01 11:00:00 UTC+0000", "2026-11-01 11:30:00 UTC+0000");
    for (first, second) in [(early, late), (late, early)] {
        let state = ("s-waf_log_out.json", state(first, second));
        let migration = migrated(&[("s-waf_log_conf.json", waf_conf()), state]);
        // Four hours after the later of the two.
        assert!(banned(&migration, "198.51.100.1", NOW + Span(209)));
        assert!(!banned(&migration, "198.51.100.1", NOW + Span(210)));
        assert!(!banned(&migration, "198.51.100.2", NOW));
    }
}

/// What the old solution would do at `now_ms`, by its own arithmetic: seconds as a fraction of minutes, strictly less.
fn old_keeps(entry: &(u64, i64), threshold: u64, period_minutes: f64, now_ms: i64) -> bool {
    let minutes = (now_ms - entry.1) as f64 / 60_000.0;
    entry.0 >= threshold && minutes < period_minutes
}

#[test]
fn whatever_the_state_holds_the_same_clients_stay_banned_until_the_same_minute() {
    for seed in 0..200 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let period = *[30u64, 60, 240, 1_440].choose(&mut random).unwrap();
        let (general, login) = (random.random_range(50..200), random.random_range(5..50));
        let now_ms = i64::from(NOW.0) * 60_000;
        let mut entries: BTreeMap<(bool, IpAddr), (u64, i64)> = BTreeMap::new();
        for _ in 0..random.random_range(0..40) {
            // Each address in a site of its own, for IPv6 is banned by site.
            let address: IpAddr = if random.random_bool(0.3) {
                format!("2001:db8:0:{:x}::{:x}", random.random_range(1..40), 7)
                    .parse()
                    .unwrap()
            } else {
                format!("198.51.100.{}", random.random_range(1..40)).parse().unwrap()
            };
            let ago_ms = random.random_range(0..2 * period as i64 * 60) * 1_000;
            let entry = (random.random_range(1..300), now_ms - ago_ms);
            entries.insert((random.random_bool(0.5), address), entry);
        }
        let (mut all, mut of_login) = (serde_json::Map::new(), serde_json::Map::new());
        for ((path, address), (count, updated_ms)) in &entries {
            let time = chrono::DateTime::from_timestamp_millis(*updated_ms).unwrap();
            let text = time.format("%Y-%m-%d %H:%M:%S UTC+0000").to_string();
            let list = if *path { &mut of_login } else { &mut all };
            list.insert(address.to_string(), entry(*count, &text));
        }
        let conf = json!({
            "general": { "requestThreshold": general, "blockPeriod": period, "ignoredSufixes": [] },
            "uriList": { "/login": { "requestThreshold": login } },
        });
        let state = json!({ "general": all, "uriList": { "/login": of_login } });
        let migration = migrated(&[("s-waf_log_conf.json", conf), ("s-waf_log_out.json", state)]);
        for minute in (0..=period as u32 + 2).step_by(7).chain([1, 2]) {
            let now = NOW + Span(minute);
            let nets = wanted(&migration, now);
            for address in entries.keys().map(|(_, address)| *address) {
                let keeps = |at_ms: i64| {
                    [(false, general), (true, login)].into_iter().any(|(path, threshold)| {
                        let entry = entries.get(&(path, address));
                        entry.is_some_and(|entry| old_keeps(entry, threshold, period as f64, at_ms))
                    })
                };
                // In the minute in which the old one ends, ours ends too: the old one keeps nobody to the minute's end.
                let end_of_minute_ms = i64::from(now.0) * 60_000 + 59_999;
                let ours = nets.iter().any(|net| net.contains(&address));
                assert_eq!(ours, keeps(end_of_minute_ms), "seed {seed}: {address} at {now}");
            }
            assert!(nets.len() <= entries.len());
        }
    }
}

#[test]
fn entries_without_dates_are_kept_as_long_as_the_old_solution_meant() {
    let sets = [
        ("a.json", ip_set("sBlacklistSetIPV4", &["192.0.2.0/24"])),
        ("b.json", ip_set("sIPBadBotSetIPV4", &["198.51.100.66/32"])),
        ("c.json", ip_set("sHTTPFloodSetIPV4", &["198.51.100.67/32"])),
        ("d.json", ip_set("sWhitelistSetIPV4", &["192.0.2.7/32"])),
    ];
    let migration = migrated(&sets);
    let years = NOW + Span(60 * 24 * 400);
    for (address, at, expected) in [
        ("192.0.2.1", years, true),
        ("192.0.2.255", years, true),
        // The old allow rule came first.
        ("192.0.2.7", NOW, false),
        ("198.51.100.66", years, true),
        // Nobody knows since when: a whole period from now is the latest.
        ("198.51.100.67", NOW + Span(239), true),
        ("198.51.100.67", NOW + Span(240), false),
    ] {
        assert_eq!(banned(&migration, address, at), expected, "{address} at {at}");
    }
    let ending = migrate(&files(&sets), NOW, Some(Span(7 * 24 * 60))).unwrap();
    assert!(banned(&ending, "198.51.100.66", NOW + Span(7 * 24 * 60 - 1)));
    assert!(!banned(&ending, "198.51.100.66", NOW + Span(7 * 24 * 60)));
    // A state that does not name them means that the next log object would have let them go.
    let state = ("s-waf_log_out.json", json!({ "general": {}, "uriList": {} }));
    let conf = ("s-waf_log_conf.json", waf_conf());
    let known = migrated(&[sets[2].clone(), state, conf]);
    assert!(!banned(&known, "198.51.100.67", NOW));
}

#[test]
fn a_policy_comes_out_right_whatever_the_conf_holds() {
    for (conf, expected) in [
        (
            json!({ "general": { "requestThreshold": 0, "blockPeriod": 0 } }),
            "limit  = 1\n",
        ),
        (
            json!({ "general": { "requestThreshold": "250", "blockPeriod": "9999999999" } }),
            "limit  = 250\n",
        ),
        (json!({ "general": {} }), "limit  = 100\n"),
        (
            json!({ "general": { "requestThreshold": 100, "ignoredSufixes": ["", "/"] } }),
            "unless = { uri = [\"*\", \"*/\"] }\n",
        ),
        (
            json!({ "general": { "requestThreshold": 100 }, "uriList": { "/a\"b\n\u{1b}[2J{n}*": { "requestThreshold": 3 }, "/a-b": { "requestThreshold": 3 } } }),
            "name   = \"http-flood-a-b\"\n",
        ),
    ] {
        let migration = migrated(&[("s-waf_log_conf.json", conf)]);
        assert!(migration.policy.contains(expected), "{}", migration.policy);
        assert!(!migration.policy.contains('\u{1b}'));
        let policy = Policy::parse(&migration.policy).unwrap();
        assert!(policy.rules.iter().any(|rule| rule.name == "http-flood"));
        let failed = analyzer::rehearse(&policy)
            .into_iter()
            .filter(|rehearsal| !rehearsal.failures.is_empty());
        assert_eq!(failed.collect::<Vec<_>>(), []);
    }
    // Of codes that WAF's logs don't show no rule is made up.
    let conf = json!({ "general": { "errorThreshold": 50, "errorCodes": [404] } });
    let migration = migrated(&[("s-app_log_conf.json", conf)]);
    let policy = Policy::parse(&migration.policy).unwrap();
    assert!(policy.rules.iter().all(|rule| rule.name != "scanners-and-probes"));
    assert!(
        migration
            .lines
            .iter()
            .any(|line| line.kind == Kind::NoEquivalent && line.old.contains("404"))
    );
}
