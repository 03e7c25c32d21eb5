//! The live page: what it shows of a deployment, and whom it lets change something.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};

use palisade::place::s3_client;
use palisade::traffic;
use serde_json::{Value, json};

use crate::aws::StandIn;
use crate::browser::Browser;
use aws_sdk_wafv2::types::{IpAddressVersion, Scope};

/// A deployment in a folder: the demo's hour, judged up to 12:45.
struct Place {
    folder: tempfile::TempDir,
    /// Where the state is.
    state: String,
    env: Vec<(&'static str, String)>,
}

impl Place {
    fn new(policy: &str) -> Place {
        let place = Place {
            folder: tempfile::tempdir().unwrap(),
            state: "state".into(),
            env: Vec::new(),
        };
        traffic::deliver(&traffic::hour(1).requests, &place.folder.path().join("logs"), 1).unwrap();
        fs::write(place.folder.path().join("policy.toml"), policy).unwrap();
        place
    }

    fn on(mut self, aws: &StandIn) -> Place {
        self.env = aws.environment("us-east-1");
        self
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command
            .args(args.split_whitespace())
            .current_dir(self.folder.path())
            .env_remove("PALISADE_STATE")
            .envs(self.env.clone());
        command
    }

    fn run(&self, args: &str) -> Output {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "palisade {args}: {output:?}");
        output
    }

    /// Judges a few minutes of the hour.
    fn judged(self) -> Place {
        let state = &self.state;
        self.run(&format!("-q policy push policy.toml --state {state}"));
        for minute in ["12:10", "12:22", "12:35", "12:45"] {
            self.run(&format!(
                "-q run --state {state} --logs logs --once --now 2026-11-01T{minute}"
            ));
        }
        self
    }

    fn serve(&self, args: &str) -> Server {
        let state = &self.state;
        let args = format!("-q serve --state {state} --listen 127.0.0.1:0 --now 2026-11-01T12:45 {args}");
        let mut process = self.command(&args).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut url)
            .unwrap();
        Server {
            process,
            url: url.trim().to_owned(),
        }
    }

    fn state(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join("state").join(name)).unwrap()
    }
}

/// `palisade serve`, ended with the test.
struct Server {
    process: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Server {
    fn address(&self) -> SocketAddr {
        let rest = self.url.strip_prefix("http://").unwrap();
        rest.split('/').next().unwrap().parse().unwrap()
    }

    /// The path of the page, which holds the token if there is one.
    fn path(&self) -> String {
        let rest = self.url.strip_prefix("http://").unwrap();
        rest[rest.find('/').unwrap()..].to_owned()
    }

    fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        let mut request = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            request += &format!("Host: {}\r\n", self.address());
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            request += &format!(
                "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        stream.write_all(format!("{request}\r\n{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    fn page(&self) -> String {
        let answer = self.ask(&format!("GET {}", self.path()), &[], "");
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Sends a form as our own page would.
    fn change(&self, act: &str, body: &str) -> Answer {
        let origin = format!("http://{}", self.address());
        self.ask(&format!("POST {}{act}", self.path()), &[("Origin", &origin)], body)
    }
}

fn demo_policy() -> String {
    format!(
        "{}\n[[allow]]\ncidr = \"203.0.113.200/32\"\nnote = \"our own scanner\"\n",
        analyzer::DEFAULT_POLICY
    )
}

#[test]
fn the_live_page_shows_what_holds_now_and_changes_nothing() {
    let place = Place::new(&demo_policy()).judged();
    let (ledger, server) = (place.state("ledger.json"), place.serve("--logs logs"));
    let page = server.page();
    let status: Value =
        serde_json::from_slice(&place.run("status --json --state state --now 2026-11-01T12:45").stdout).unwrap();
    assert!(
        status["offenders"].is_object() || status["offenders"].is_array(),
        "{status}"
    );
    for shown in [
        "bans are in force, and nothing is blocked: the policy observes",
        "id=\"client-192.0.2.44/32\"",
        "allow: our own scanner",
        "login-brute-force",
        "GET /.aws/credentials",
        "2026-11-01 12:45",
        "deployment.json</code> names no IP sets",
        "released; 200 new bans a run at most",
        "The brake holds what is more than 200 new bans in one run, and 10 or more bans whose clients made more than 20 % of the allowed requests.",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(!page.contains("<form"));
    assert!(!page.contains("/api/v1/search?"));

    // Nobody may change anything, whatever path they guess.
    let origin = format!("http://{}", server.address());
    for path in ["/", "/unban", "/w//unban", "/w/0/unban", "/w/none/ban"] {
        let answer = server.ask(&format!("POST {path}"), &[("Origin", &origin)], "cidr=192.0.2.44&why=x");
        assert!([404, 405].contains(&answer.status), "{path}: {}", answer.status);
    }
    assert_eq!(place.state("ledger.json"), ledger);

    // Nor look under a name that somebody pointed at us.
    for host in ["example.com", "127.0.0.1.example.com:80", "localhost.example.com"] {
        let answer = server.ask("GET /", &[("Host", host)], "");
        assert_eq!(answer.status, 421, "{host}");
        assert!(!answer.body.contains("192.0.2.44"));
    }
    let head = server.ask("GET /", &[("Host", "localhost:1")], "").head;
    for header in [
        "default-src 'none'",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
        "x-frame-options: deny",
        "referrer-policy: same-origin",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
    assert!(!head.contains("unsafe"));
}

#[test]
fn without_logs_the_live_page_says_what_is_missing() {
    let place = Place::new(&demo_policy()).judged();
    let page = place.serve("").page();
    assert!(page.contains("start <code>palisade serve</code> with <code>--logs</code> to see them here"));
    assert!(page.contains("data-chart=\"timeline\"") && page.contains("data-chart=\"rates\""));
}

#[test]
fn with_the_token_a_person_bans_unbans_and_allows_with_a_reason() {
    let place = Place::new(&demo_policy()).judged();
    let server = place.serve("--allow-writes");
    assert!(server.path().len() > 20 && server.page().contains("<form"));
    assert!(
        !server.ask("GET /", &[], "").body.contains("<form"),
        "without the token one may only look"
    );
    let version = server.ask("GET /version", &[], "").body;

    let done = server.change("unban", "cidr=192.0.2.44%2F32&why=it+was+%3Cb%3Eus%3C%2Fb%3E");
    assert_eq!((done.status, done.body.as_str()), (303, ""));
    assert!(done.head.contains(&format!("location: {}", server.path())));
    let told = "1 ban of 192.0.2.44/32 ended; the next run updates the IP sets";
    assert!(
        !server.ask("GET /", &[], "").body.contains(told),
        "it is told to whoever did it"
    );
    assert!(server.page().contains(told));
    assert!(!server.page().contains("192.0.2.44/32 ended"), "it is said once");
    assert_ne!(
        server.ask("GET /version", &[], "").body,
        version,
        "other pages hear of it"
    );

    assert_eq!(server.change("ban", "cidr=198.51.100.7&for=2h&why=spam").status, 303);
    assert!(server.page().contains("198.51.100.7/32 is banned for 2h"));
    assert_eq!(
        server
            .change("allow", "cidr=198.51.100.0%2F28&for=&why=%3Cscript%3E")
            .status,
        303
    );
    let page = server.page();
    assert!(
        page.contains("never banned until it is taken back")
            && page.contains("&lt;script&gt;")
            && !page.contains("<bdi class=\"data\"><script")
    );

    let ledger = place.state("ledger.json");
    let decided: Vec<Value> = walkdir::WalkDir::new(place.folder.path().join("state/decisions"))
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| serde_json::from_str(&fs::read_to_string(entry.path()).unwrap()).unwrap())
        .collect();
    assert_eq!(decided.len(), 3);
    let unban = json!({"type": "unban", "time": "2026-11-01T12:45:00Z", "network": "192.0.2.44/32", "for": null, "why": "it was <b>us</b>"});
    assert!(decided.contains(&unban), "{decided:?}");
    assert!(ledger.contains("spam"));

    // What makes no sense is said and changes nothing.
    for (act, body, told) in [
        (
            "unban",
            "cidr=192.0.2.44&why=again",
            "no ban of `192.0.2.44/32` is in force",
        ),
        (
            "ban",
            "cidr=203.0.113.200&why=x",
            "can&#39;t be banned (allow: our own scanner)",
        ),
        ("ban", "cidr=192.0.2.66%2F29&why=x", "did you mean"),
        ("ban", "cidr=192.0.2.66&for=soon&why=x", "is not a time span"),
        ("ban", "cidr=192.0.2.66&why=+", "a reason is missing"),
        ("frob", "cidr=192.0.2.66&why=x", "there is no such change"),
    ] {
        assert_eq!(server.change(act, body).status, 303);
        let page = server.page();
        assert!(
            page.contains("Nothing has changed") && (page.contains(told) || page.contains(&told.replace("&#39;", "'"))),
            "{told}"
        );
    }
    assert_eq!(server.change("ban", "cidr=%3Cimg+src%3Dx%3E&why=x").status, 303);
    let page = server.page();
    assert!(page.contains("`&lt;img src=x&gt;` is not an address") && !page.contains("<img"));
    // A form is short; whoever sends a long one wants something else.
    let long = format!("cidr=192.0.2.99&why={}", "x".repeat(20_000));
    assert_eq!(server.change("ban", &long).status, 413);
    // From elsewhere nothing is taken, and a wrong token has no pages.
    let own = format!("http://{}", server.address());
    let unban = format!("POST {}ban", server.path());
    for headers in [
        &[][..],
        &[("Origin", "null")],
        &[("Origin", "http://example.com")],
        &[("Origin", "http://127.0.0.1:1")],
        &[("Origin", own.as_str()), ("Sec-Fetch-Site", "cross-site")],
    ] {
        assert_eq!(
            server.ask(&unban, headers, "cidr=192.0.2.99&why=x").status,
            403,
            "{headers:?}"
        );
    }
    let wrong = server.path().replace("/w/", "/w/0");
    for page in ["", "version"] {
        assert_eq!(server.ask(&format!("GET {wrong}{page}"), &[], "").status, 404);
    }
    assert_eq!(
        server
            .ask(
                &format!("POST {wrong}ban"),
                &[("Origin", &own)],
                "cidr=192.0.2.99&why=x"
            )
            .status,
        404
    );
    assert_eq!(place.state("ledger.json"), ledger);
}

#[test]
fn a_damaged_ledger_is_said_and_nothing_is_shown_as_if_nobody_were_banned() {
    let place = Place::new(&demo_policy()).judged();
    let server = place.serve("");
    fs::write(place.folder.path().join("state/ledger.json"), "{\"version\":99}").unwrap();
    let answer = server.ask("GET /", &[], "");
    assert_eq!(answer.status, 502);
    assert!(answer.body.contains("ledger.json"), "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_page_shows_the_ip_sets_their_room_and_what_the_next_run_changes() {
    let Some(aws) = StandIn::shared() else { return };
    let waf = aws_sdk_wafv2::Client::new(&aws.config("us-east-1"));
    let mut sets = Vec::new();
    for (name, version) in [
        ("serve-v4", IpAddressVersion::Ipv4),
        ("serve-v6", IpAddressVersion::Ipv6),
    ] {
        let made = waf
            .create_ip_set()
            .name(name)
            .scope(Scope::Regional)
            .ip_address_version(version)
            .set_addresses(Some(Vec::new()))
            .send()
            .await
            .unwrap();
        sets.push(json!([{"name": name, "id": made.summary().unwrap().id().unwrap()}]));
    }
    let place = Place::new(&demo_policy().replace("mode = \"observe\"", "mode = \"enforce\"")).on(aws);
    fs::create_dir_all(place.folder.path().join("state")).unwrap();
    let deployment = json!({"version": 1, "targets": [{"scope": "REGIONAL", "region": "us-east-1",
        "block": {"v4": sets[0], "v6": sets[1]}, "challenge": {"v4": [], "v6": []}, "exclusive": false}]});
    fs::write(
        place.folder.path().join("state/deployment.json"),
        deployment.to_string(),
    )
    .unwrap();
    let place = place.judged();
    let server = place.serve("");
    let page = tokio::task::block_in_place(|| server.page());
    assert!(page.contains("REGIONAL us-east-1: serve-v4, serve-v6"), "no target");
    assert!(page.contains("everything fits") && page.contains("without a failure"));
    let row = page.split("serve-v4, serve-v6").nth(1).unwrap();
    let row: Vec<&str> = row
        .split("<td class=\"n\">")
        .skip(1)
        .map(|cell| cell.split('<').next().unwrap())
        .take(3)
        .collect();
    let bans = page
        .split("<h1>")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse::<usize>()
        .unwrap();
    let room = 20_000 - bans;
    assert_eq!(row, [format!("{},{:03}", room / 1000, room % 1000).as_str(), "0", "0"]);

    place.run("ban 198.51.100.9 --why test --state state");
    let page = tokio::task::block_in_place(|| server.page());
    let row = page.split("serve-v4, serve-v6").nth(1).unwrap();
    let missing = row.split("<td class=\"n\">").nth(2).unwrap();
    assert!(missing.starts_with('1'), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_page_of_a_deployment_in_a_bucket_is_that_of_one_in_a_folder() {
    let Some(aws) = StandIn::shared() else { return };
    let s3 = s3_client(&aws.config("us-east-1"));
    for bucket in ["serve-state", "serve-logs"] {
        s3.create_bucket().bucket(bucket).send().await.unwrap();
    }
    let in_folder = Place::new(&demo_policy()).judged();
    let mut in_bucket = Place::new(&demo_policy()).on(aws);
    in_bucket.state = "s3://serve-state/api".into();
    let in_bucket = in_bucket.judged();
    let logs = in_bucket.folder.path().join("logs");
    for entry in walkdir::WalkDir::new(&logs).into_iter().flatten() {
        if entry.file_type().is_file() {
            let key = entry.path().strip_prefix(&logs).unwrap().to_string_lossy().into_owned();
            let put = s3.put_object().bucket("serve-logs").key(format!("waf/{key}"));
            put.body(fs::read(entry.path()).unwrap().into()).send().await.unwrap();
        }
    }
    tokio::task::block_in_place(|| {
        let server = in_bucket.serve("--allow-writes --logs s3://serve-logs/waf/");
        let rows = |page: &str| {
            let bans = page.split("id=\"ban-rows\"").nth(1).unwrap();
            // Forms are for those who may write.
            let mut parts = bans.split("</table>").next().unwrap().split("<form");
            let first = parts.next().unwrap().to_owned();
            parts.fold(first, |all, part| all + part.split_once("</form>").unwrap().1)
        };
        let page = server.page();
        assert!(page.contains("s3://serve-state/api"));
        assert!(
            page.contains("GET /.aws/credentials"),
            "requests are those of the bucket's logs"
        );
        assert_eq!(rows(&page), rows(&in_folder.serve("--logs logs").page()));

        let version = server.ask("GET /version", &[], "").body;
        assert_eq!(server.change("unban", "cidr=192.0.2.44&why=it+was+us").status, 303);
        assert!(server.page().contains("1 ban of 192.0.2.44/32 ended"));
        assert_ne!(server.ask("GET /version", &[], "").body, version);
        let status = in_bucket
            .run("status --json --state s3://serve-state/api --now 2026-11-01T12:45")
            .stdout;
        let status: Value = serde_json::from_slice(&status).unwrap();
        let offender = &status["offenders"]["192.0.2.44/32"];
        assert!(offender["ban"].is_null(), "{offender}");
    });
    let decisions = s3
        .list_objects_v2()
        .bucket("serve-state")
        .prefix("api/decisions/")
        .send()
        .await
        .unwrap();
    assert_eq!(decisions.contents().len(), 1);
    // A bucket that is gone is no deployment without bans.
    tokio::task::block_in_place(|| {
        let mut nowhere = Place::new(&demo_policy()).on(aws);
        nowhere.state = "s3://serve-no-such-bucket/api".into();
        let answer = nowhere.serve("").ask("GET /", &[], "");
        assert_eq!(answer.status, 502);
        assert!(answer.body.contains("serve-no-such-bucket"), "{}", answer.body);
    });
}

#[test]
fn the_live_page_looks_and_works_in_a_browser() {
    let Some(browser) = Browser::shared() else { return };
    let place = Place::new(&demo_policy()).judged();
    place.run("ban 198.51.100.7 --why </script><img/src=x/onerror=window.hacked=1> --state state");
    let server = place.serve("--allow-writes --logs logs");
    let seen = browser.look(&json!([
        {"name": "live", "kind": "live", "url": server.url, "search": "python-requests", "found": 1},
    ]));
    assert_eq!(seen.len(), 4);
    assert!(seen[0]["bans"].as_u64().unwrap() >= 5, "{seen:?}");
}
