//! The pages that operators look at: what they say, what they never say, how large they get, and how they look and work
//! in a real browser.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use palisade::traffic::{self, HOUR_BEGINS_MS, Sent};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::browser::Browser;

/// A folder to run commands in.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn deliver(&self, requests: &[Sent]) {
        traffic::deliver(requests, &self.path("logs"), 1).unwrap();
    }

    fn run(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command.args(args.split_whitespace()).current_dir(self.folder.path());
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// The page that a command writes to `page.html`, and what it says on stdout.
    fn page(&self, args: &str) -> (String, String) {
        let output = self.run(args);
        assert!(output.status.success() || output.status.code() == Some(4), "{output:?}");
        let page = fs::read_to_string(self.path("page.html")).unwrap();
        (page, String::from_utf8(output.stdout).unwrap())
    }
}

/// What the page's script reads.
pub(crate) fn data_of(page: &str) -> Value {
    let begin = "<script type=\"application/json\" id=\"data\">";
    let (_, rest) = page.split_once(begin).unwrap();
    let (data, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(data).unwrap()
}

#[test]
fn a_page_shows_the_lines_of_json() {
    let place = Place::new();
    place.deliver(&traffic::hour(1).requests);
    let (page, json) = place.page("-q replay --json --html page.html logs");
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, verdicts) = lines.split_last().unwrap();
    let data = data_of(&page);
    assert_eq!(data["lines"], json!(verdicts));
    let untyped = |mut summary: Value| {
        summary.as_object_mut().unwrap().remove("type");
        summary
    };
    assert_eq!(data["summary"], untyped(summary.clone()));
    assert!(verdicts.len() > 8);
    for line in verdicts {
        let client = line["client"].as_str().unwrap();
        assert!(
            page.contains(&format!("id=\"client-{client}\"")),
            "{client} is explained"
        );
        assert!(
            page.contains(&format!("href=\"#client-{client}\"")),
            "{client} is linked"
        );
    }
    // Every request is in exactly one of the timeline's three lists.
    let sum = |name: &str| -> u64 {
        let list = data["timeline"][name].as_array().unwrap();
        list.iter().map(|n| n.as_u64().unwrap()).sum()
    };
    assert_eq!(
        sum("allowed") + sum("blocked") + sum("stopped"),
        summary["requests"].as_u64().unwrap()
    );
    assert_eq!(sum("stopped"), summary["stopped"].as_u64().unwrap());
}

#[test]
fn a_ban_is_shown_with_its_evidence_and_what_it_costs() {
    let place = Place::new();
    // 30 attempts in a minute, and under the ban that follows, five more beside two orders that would have been allowed.
    let client: IpAddr = "192.0.2.44".parse().unwrap();
    let mut requests: Vec<Sent> = (0..35)
        .map(|n| Sent {
            method: "POST",
            uri: "/api/login".into(),
            args: "password=hunter2".into(),
            country: "NL",
            user_agent: "python-requests/2.32".into(),
            headers: vec![("cookie", "session=abc123".into())],
            ..Sent::new(HOUR_BEGINS_MS + n * 2_000 + if n < 30 { 0 } else { 120_000 }, client)
        })
        .collect();
    for n in 0..2 {
        requests.push(Sent {
            uri: "/api/orders/3f2504e0-4f89-11d3-9a0c-0305e82c3301".into(),
            ..Sent::new(HOUR_BEGINS_MS + 180_000 + n, client)
        });
    }
    place.deliver(&requests);
    let (page, _) = place.page("-q replay --html page.html logs");
    let row = page.split("<tbody data-rule=\"login-brute-force\"").nth(1).unwrap();
    let row = row.split("</tbody>").next().unwrap();
    for shown in [
        "POST /api/login",
        "NL",
        "python-requests/2.32",
        "First seen</dt><dd class=\"t\">2026-11-01 12:00:00",
        "Last seen</dt><dd class=\"t\">2026-11-01 12:00:58",
        "30 of 30 requests (100 %), 50 % needed",
        "30 of 20",
        "It stops 7 requests, 7 of which WAF allowed",
        "2 allowed requests did not match the rule",
        "GET /api/orders/[redacted]",
    ] {
        assert!(row.contains(shown), "{shown} is not in {row}");
    }
    for secret in ["hunter2", "abc123", "password=", "3f2504e0"] {
        assert!(!page.contains(secret), "{secret}");
    }
}

#[test]
fn standard_input_is_read_once_and_shown_all_the_same() {
    let place = Place::new();
    place.deliver(&traffic::hour(1).requests);
    let (from_folder, _) = place.page("-q replay --html page.html logs");
    let mut all = Vec::new();
    for entry in walkdir::WalkDir::new(place.path("logs")).sort_by_file_name() {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            all.extend(fs::read(entry.path()).unwrap());
        }
    }
    fs::write(place.path("all.gz"), &all).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command
        .args(["-q", "replay", "--html", "page.html", "-"])
        .current_dir(place.folder.path());
    let piped = command
        .stdin(fs::File::open(place.path("all.gz")).unwrap())
        .output()
        .unwrap();
    assert!(piped.status.success(), "{piped:?}");
    let from_pipe = fs::read_to_string(place.path("page.html")).unwrap();
    for part in ["lines", "timeline", "rates", "activity"] {
        assert_eq!(data_of(&from_pipe)[part], data_of(&from_folder)[part], "{part}");
    }
    let rows = |page: &str| {
        page.split("<section")
            .filter(|part| part.contains("id=\"bans\""))
            .map(str::to_owned)
            .next()
    };
    assert_eq!(rows(&from_pipe), rows(&from_folder));
}

#[test]
fn a_page_that_cannot_be_written_is_news_before_anything_is_read() {
    let place = Place::new();
    place.deliver(&traffic::hour(1).requests);
    let output = place.run("replay --html nowhere/page.html logs");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("failed to write `nowhere/page.html`: there is no such file or folder"),
        "{told}"
    );
    assert!(output.stdout.is_empty());
}

/// What people and tools put into requests to get out of the place where they are shown.
pub(crate) const HOSTILE: &[&str] = &[
    "</script><script>window.hacked=1</script>",
    "</textarea></title></style><script>window.hacked=1</script>",
    "\"><img src=x onerror=window.hacked=1>",
    "'><svg onload=window.hacked=1>",
    "<!--<script>",
    "]]><b>",
    "javascript:window.hacked=1",
    "{{constructor.constructor('window.hacked=1')()}}",
    "${window.hacked=1}",
    "&lt;b&gt; &amp;quot;",
    "\u{2028}window.hacked=1\u{2029}",
    "\u{202e}txt.exe\u{2066}\u{200f}\u{61c}",
    "a\u{0}b\u{1b}[2Jc\u{7f}\u{85}",
    "\u{feff}\u{200b}",
    "%3Cscript%3Ewindow.hacked%3D1%3C/script%3E",
    "<base href=https://example.com/><link rel=stylesheet href=//example.com/x><meta http-equiv=refresh content=0>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'>",
    "onmouseover=window.hacked=1 x=",
];

/// Attackers that put the corpus wherever a record has text, and a policy whose own texts are no better.
fn hostile(place: &Place, tail: &str) {
    let mut requests = Vec::new();
    for (n, text) in HOSTILE.iter().enumerate() {
        let client = IpAddr::from([192, 0, 2, n as u8 + 1]);
        for k in 0..8 {
            requests.push(Sent {
                uri: format!("/.env{text}{tail}{k}"),
                args: (*text).into(),
                user_agent: format!("{text}{tail}{k}"),
                country: if n % 2 == 0 { "<b>" } else { "DE" },
                waf_rule: text,
                labels: vec![text],
                ..Sent::new(HOUR_BEGINS_MS + n as i64 * 60_000 + k * 1_000, client)
            });
        }
    }
    place.deliver(&requests);
    fs::write(
        place.path("logs/<img src=x onerror=window.hacked=1>.gz"),
        b"\x1f\x8b\x08nonsense",
    )
    .unwrap();
    let policy =
        analyzer::DEFAULT_POLICY.replace("why    = \"", "why    = \"</script><script>window.hacked=1</script>");
    let allow = "\n[[allow]]\ncidr = \"192.0.2.3\"\nnote = \"</script><img src=x onerror=window.hacked=1>\"\n";
    fs::write(place.path("policy.toml"), policy + allow).unwrap();
}

#[test]
fn text_from_logs_never_becomes_markup() {
    let place = Place::new();
    hostile(&place, "");
    let (page, _) = place.page("-q replay --policy policy.toml --html page.html logs");
    let lower = page.to_ascii_lowercase();
    // Two elements of script, and those are ours; uPlot's own code has no markup in it.
    assert_eq!(lower.matches("<script").count(), 2);
    assert_eq!(lower.matches("</script").count(), 2);
    for markup in ["<img", "<svg", "<base", "<iframe", "<!--", "<b>", "</title></style>"] {
        assert!(!lower.contains(markup), "{markup}");
    }
    for invisible in [
        '\u{0}', '\u{1b}', '\u{7f}', '\u{85}', '\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}', '\u{200f}', '\u{61c}',
        '\u{feff}', '\u{200b}',
    ] {
        assert!(!page.contains(invisible), "U+{:04X}", invisible as u32);
    }
    // Nothing is lost by that: whoever looks sees what was sent.
    assert!(page.contains("&lt;/script&gt;&lt;script&gt;window.hacked=1&lt;/script&gt;"));
    assert!(page.contains("\\u{202e}txt.exe"));
    assert_eq!(data_of(&page)["lines"].as_array().unwrap().len(), HOSTILE.len());
    let policy = page
        .split("Content-Security-Policy\" content=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src &apos;sha256-")
            || policy.starts_with("default-src 'none'; script-src 'sha256-"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe"));
}

#[test]
fn a_page_stays_small_whatever_is_in_the_logs_and_says_what_it_left_out() {
    let place = Place::new();
    // Twelve hundred attackers with paths and user agents as long and as bad as they get.
    let bad = "\"\u{202e}<&'\"".repeat(60);
    let mut requests = Vec::new();
    for n in 0..1_200u32 {
        let client = IpAddr::from([198, 18 + (n / 65_536) as u8, (n / 256) as u8, n as u8]);
        for k in 0..12 {
            requests.push(Sent {
                uri: format!("/{k}{n}{bad}/.env"),
                user_agent: format!("{k}{bad}"),
                ..Sent::new(HOUR_BEGINS_MS + i64::from(n % 50) * 60_000 + k * 2_000, client)
            });
        }
    }
    place.deliver(&requests);
    let policy = analyzer::DEFAULT_POLICY
        .replace("new_bans = 200", "new_bans = 100000")
        .replace("allowed_share = 0.2", "allowed_share = 1.0");
    fs::write(place.path("policy.toml"), policy).unwrap();
    let (page, told) = place.page("-q replay --policy policy.toml --html page.html logs");
    println!("a page of 1,200 bans has {} bytes", page.len());
    assert!(page.len() < 5_000_000, "{}", page.len());
    assert!(
        page.contains("This page shows the 400 bans that would have stopped most; 800 more are in the numbers"),
        "{told}"
    );
    assert!(page.contains("1,200 bans of 1,200 clients"));
    let shown: BTreeSet<&str> = page
        .split("href=\"#client-")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    let explained = shown
        .iter()
        .filter(|client| page.contains(&format!("id=\"client-{client}\"")))
        .count();
    let left_out = format!("{} clients found no place on this page", shown.len() - explained);
    assert!(
        explained == shown.len() || page.contains(&left_out),
        "{explained} of {}",
        shown.len()
    );
}

/// A day of `requests` requests, a hundredth of them by attackers of four kinds, delivered hour by hour.
fn a_day_of(place: &Place, requests: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let hour = requests / 24;
    for begin in 0..24 {
        let begins_ms = HOUR_BEGINS_MS + begin * 3_600_000;
        let mut sent = Vec::new();
        while (sent.len() as u64) < hour * 99 / 100 {
            let client = IpAddr::from((random.random::<u32>() % 300_000 + 0xC612_0000).to_be_bytes());
            let mut at = begins_ms + random.random_range(0..3_500_000);
            for page in 0..random.random_range(5..25) {
                at += random.random_range(500..4_000);
                let mut one = Sent::new(at, client);
                // A tenth of all paths is asked for once and never again.
                one.uri = match random.random_range(0..10) {
                    0 => format!("/api/v1/track/{}", random.random::<u64>()),
                    _ => format!("/api/v1/items/{}", random.random_range(1..5_000)),
                };
                if page == 2 {
                    (one.method, one.uri) = ("POST", "/api/v1/login".into());
                }
                one.user_agent = format!("App/{}.{}", random.random_range(1..9), random.random_range(0..200));
                one.country = ["DE", "FR", "US", "BR", "IN", "JP"][random.random_range(0..6)];
                sent.push(one);
            }
        }
        let mut attacks = 0;
        while attacks < hour / 100 {
            let client = IpAddr::from([192, 0, random.random_range(2..3), random.random::<u8>()]);
            let client = if random.random::<bool>() {
                IpAddr::from([203, 0, 113, random.random::<u8>()])
            } else {
                client
            };
            let mut at = begins_ms + random.random_range(0..3_400_000);
            let kind = random.random_range(0..4);
            for n in 0..random.random_range(10..120) {
                at += random.random_range(200..2_000);
                let mut one = Sent::new(at, client);
                match kind {
                    0 => (one.method, one.uri) = ("POST", "/api/v1/login".into()),
                    1 => one.uri = format!("/backup/{n}/.env"),
                    2 => one.uri = format!("/wp-content/plugins/{n}/x.php"),
                    _ => one.user_agent = format!("sqlmap/1.{n} {}", HOSTILE[n as usize % HOSTILE.len()]),
                }
                one.country = "NL";
                sent.push(one);
                attacks += 1;
            }
        }
        traffic::deliver(&sent, &place.path("logs"), begin as u64).unwrap();
    }
}

/// Writes the page of a day of so many requests and returns its size.
fn page_of(requests: u64) -> (Place, usize) {
    let place = Place::new();
    a_day_of(&place, requests);
    let began = Instant::now();
    let (page, told) = place.page("-q replay --json --html page.html logs");
    let summary: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    println!(
        "{} requests of {} clients, {} bans: a page of {} bytes after {:.0} s, replay alone {} s",
        summary["requests"],
        summary["clients"],
        summary["bans"],
        page.len(),
        began.elapsed().as_secs_f64(),
        summary["seconds"]
    );
    assert!(page.len() < 5_000_000, "{}", page.len());
    assert!(summary["bans"].as_u64().unwrap() > 0);
    (place, page.len())
}

#[test]
fn ten_times_as_many_requests_make_a_page_of_about_the_same_size() {
    let (_, few) = page_of(20_000);
    let (_, many) = page_of(200_000);
    assert!(many < 8 * few, "{few} and {many}");
}

/// Takes minutes and some gigabytes: `cargo test --test tests ten_million -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes and gigabytes"]
fn ten_million_requests_make_a_page_that_opens_at_once() {
    let (place, _) = page_of(10_000_000);
    let Some(browser) = Browser::shared() else { return };
    let seen = browser.look(&json!([
        {"name": "ten-million", "kind": "report", "file": place.path("page.html").display().to_string(), "search": "nobody", "found": 0},
    ]));
    println!("{}", json!(seen));
}

#[test]
fn pages_look_and_work_as_they_should_in_a_browser() {
    let Some(browser) = Browser::shared() else { return };
    let (demo, bad, quiet) = (Place::new(), Place::new(), Place::new());
    demo.page("-q demo --html page.html");
    hostile(&bad, "");
    bad.page("-q replay --policy policy.toml --html page.html logs");
    quiet.deliver(&[Sent::new(HOUR_BEGINS_MS, IpAddr::from([192, 0, 2, 1]))]);
    quiet.page("-q replay --html page.html logs");
    let file = |place: &Place| place.path("page.html").display().to_string();
    let seen = browser.look(&json!([
        {"name": "demo", "kind": "report", "file": file(&demo), "search": "python-requests 192.0.2.44", "found": 2},
        {"name": "hostile", "kind": "report", "file": file(&bad), "search": "txt.exe", "found": 1},
        {"name": "quiet", "kind": "empty", "file": file(&quiet)},
    ]));
    let demo = &seen[0];
    assert_eq!((&demo["page"], &demo["bans"]), (&json!("demo"), &json!(9)));
    assert!(demo["pictures"].as_u64().unwrap() > 5, "{demo}");
    assert!(Path::new(&browser.screens()).join("demo-phone-whole.png").is_file());
}
