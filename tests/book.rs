//! Runs every command of the documentation, and compares what it prints with what the documentation shows.
//!
//! A page's ```` ```sh ```` blocks are run in order, in a folder of the page's own, with `palisade` on the PATH; a block that
//! fails fails the test. A ```` ```text ```` block right after one shows what it prints on standard output: all of it, but
//! for `…`, which stands for anything in a line, and alone on a line for any lines. What can't be run here says why in its
//! info string: `sh,aws` needs an account, `sh,build` builds Palisade, `sh,no-run` never ends or is about somebody's own files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use palisade::traffic;

/// The pages whose commands are not run may be few.
const NOT_RUN_MAX: usize = 20;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The pages of the book in the order of `SUMMARY.md`.
fn pages() -> Vec<String> {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    links(&summary)
        .into_iter()
        .filter(|link| link.ends_with(".md"))
        .collect()
}

/// A fenced block of a page.
#[derive(Debug, PartialEq)]
struct Block {
    /// Of its first line of content, from one.
    line: usize,
    info: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(info), None) => {
                open = Some(Block {
                    line: at + 2,
                    info: info.trim().to_owned(),
                    text: String::new(),
                })
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is never closed: {open:?}");
    blocks
}

/// Whether `actual` is what `shown` shows. `all`: with nothing before, between and after but where `…` says so.
fn is_shown(shown: &str, actual: &str, all: bool) -> bool {
    let shown: Vec<&str> = shown.lines().collect();
    let actual: Vec<&str> = actual.lines().collect();
    lines_match(&shown, &actual, all)
}

fn lines_match(shown: &[&str], actual: &[&str], all: bool) -> bool {
    let Some((first, rest)) = shown.split_first() else {
        return !all || actual.is_empty();
    };
    if first.trim() == "…" {
        return (0..=actual.len()).any(|from| lines_match(rest, &actual[from..], all));
    }
    let same = |line: &str| line_matches(first.trim_end(), line.trim_end());
    if all {
        return actual
            .split_first()
            .is_some_and(|(line, left)| same(line) && lines_match(rest, left, all));
    }
    let found = actual.iter().position(|line| same(line));
    found.is_some_and(|at| lines_match(rest, &actual[at + 1..], all))
}

fn line_matches(shown: &str, line: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut left) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return left.is_empty();
    }
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        let found = if last {
            left.ends_with(part).then(|| left.len() - part.len())
        } else {
            left.find(part)
        };
        let Some(at) = found else { return false };
        left = &left[at + part.len()..];
    }
    true
}

/// Runs the commands of one page; says which blocks it left out, and what was not as the page says.
fn run(page: &str, text: &str, folder: &Path, all: bool) -> (Vec<String>, Vec<String>) {
    let (mut left_out, mut failures) = (Vec::new(), Vec::new());
    let mut printed: Option<String> = None;
    for block in blocks(text) {
        let mut info = block.info.split(',');
        let language = info.next().unwrap_or_default();
        let place = format!("{page}:{}", block.line);
        match (language, info.next()) {
            ("sh", None) => match run_block(&block.text, folder) {
                Ok(out) => printed = Some(out),
                Err(why) => {
                    failures.push(format!("{place}: {why}"));
                    break;
                }
            },
            ("sh", Some("aws" | "build" | "no-run")) => {
                left_out.push(place);
                printed = None;
            }
            ("text", None) | ("", None) if printed.is_some() => {
                let printed = printed.take().unwrap_or_default();
                if !is_shown(&block.text, &printed, all) {
                    failures.push(format!(
                        "{place}: the page shows\n{}\nand the command printed\n{printed}",
                        block.text
                    ));
                }
            }
            ("text" | "toml" | "json" | "", None) => {}
            other => failures.push(format!("{place}: a block of the kind {other:?}")),
        }
    }
    (left_out, failures)
}

/// Runs a block as a reader would, who stops at the first command that fails; what it printed.
fn run_block(script: &str, folder: &Path) -> Result<String, String> {
    let program = Path::new(env!("CARGO_BIN_EXE_palisade")).parent().unwrap();
    let path = std::env::join_paths(
        [program.to_owned()]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder)
        .env("PATH", path.unwrap())
        .env_remove("PALISADE_STATE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr),
    );
    if output.status.success() {
        Ok(out)
    } else {
        Err(format!("{}\n{script}\n{out}\n{err}", output.status))
    }
}

#[test]
fn every_command_of_the_book_does_what_the_book_says() {
    let (mut left_out, mut failures) = (Vec::new(), Vec::new());
    for page in pages() {
        let text = fs::read_to_string(root().join("docs").join(&page)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (not_run, wrong) = run(&page, &text, folder.path(), true);
        left_out.extend(not_run);
        failures.extend(wrong);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(
        left_out.len() <= NOT_RUN_MAX,
        "{} blocks are not run: {left_out:?}",
        left_out.len()
    );
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // The reader's own logs are the demo's here, of which the page shows a part.
    traffic::deliver(&traffic::hour(1).requests, &folder.path().join("my-logs"), 1).unwrap();
    let (_, failures) = run("README.md", &text, folder.path(), false);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The targets of the links of a page, without those of its code.
fn links(page: &str) -> Vec<String> {
    let mut code = false;
    let mut found = Vec::new();
    for line in page.lines() {
        if line.starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for part in line.split("](").skip(1) {
            found.extend(part.split(')').next().map(str::to_owned));
        }
    }
    found
}

/// A heading as mdBook and GitHub name its anchor.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn the_book_has_every_page_and_no_link_leads_nowhere() {
    let docs = root().join("docs");
    let mut listed = pages();
    listed.push("SUMMARY.md".to_owned());
    let mut there: Vec<String> = fs::read_dir(&docs)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md"))
        .collect();
    there.sort();
    for page in &there {
        assert!(listed.contains(page), "add `{page}` to docs/SUMMARY.md");
    }
    let mut wrong = Vec::new();
    for page in &there {
        let text = fs::read_to_string(docs.join(page)).unwrap();
        for link in links(&text) {
            if link.contains("://") {
                continue;
            }
            // Whoever reads the book has no folders around it.
            if link.starts_with("..") {
                wrong.push(format!("{page}: `{link}` leads out of the book: name the file instead"));
                continue;
            }
            let (file, fragment) = link
                .split_once('#')
                .map_or((link.as_str(), None), |(a, b)| (a, Some(b)));
            let target = if file.is_empty() {
                docs.join(page)
            } else {
                docs.join(file)
            };
            let Ok(text) = fs::read_to_string(&target) else {
                wrong.push(format!("{page}: `{link}`: there is no such file"));
                continue;
            };
            let found = |fragment: &str| {
                text.lines()
                    .any(|line| line.starts_with('#') && anchor(line) == fragment)
            };
            if let Some(fragment) = fragment.filter(|fragment| !found(fragment)) {
                wrong.push(format!("{page}: `{link}`: there is no heading `{fragment}`"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    // mdBook reads this file; `mdbook build docs` makes the book.
    let settings: toml::Table = fs::read_to_string(docs.join("book.toml")).unwrap().parse().unwrap();
    assert_eq!(settings["book"]["src"].as_str(), Some("."));
}

#[test]
fn what_is_shown_must_be_printed() {
    let page = "a\n```sh\necho\n```\ntext\n```text\nb\n```\n";
    let found: Vec<(usize, String)> = blocks(page).into_iter().map(|block| (block.line, block.info)).collect();
    assert_eq!(found, [(3, "sh".to_owned()), (7, "text".to_owned())]);
    for (shown, actual, all, expected) in [
        ("a\nb\n", "a\nb\n", true, true),
        ("a\n", "a\nb\n", true, false),
        ("b\n", "a\nb\n", true, false),
        ("a\n…\n", "a\nb\nc\n", true, true),
        ("…\nc\n", "a\nb\nc\n", true, true),
        ("a\n…\nd\n", "a\nb\nc\n", true, false),
        ("took … s\n", "took 1.5 s\n", true, true),
        ("took … s\n", "took 1.5 m\n", true, false),
        ("… s …\n", "1 s 2\n", true, true),
        ("a\nc\n", "a\nb\nc\n", false, true),
        ("c\na\n", "a\nb\nc\n", false, false),
        ("x\n", "", false, false),
    ] {
        assert_eq!(is_shown(shown, actual, all), expected, "{shown:?} {actual:?} {all}");
    }
    assert_eq!(links("[a](b.md#c) `x` [d](e)\n```\n[f](g)\n```\n"), ["b.md#c", "e"]);
    assert_eq!(
        anchor("## Parameter by parameter: `x`, y"),
        "parameter-by-parameter-x-y"
    );
}

#[test]
fn the_migration_guide_names_limits_as_the_default_policy_has_them() {
    let text = fs::read_to_string(root().join("docs/migrating.md")).unwrap();
    let (_, text) = text.split_once("## From CrowdSec").unwrap();
    let mut seen = 0;
    for rule in &analyzer::Policy::default_policy().rules {
        for (at, name) in text.match_indices(&format!("| `{}`: ", rule.name)) {
            let rest = &text[at + name.len()..];
            let expected = format!("{} in {} |", rule.limit, rule.window);
            assert!(rest.starts_with(&expected), "`{}` is {expected}", rule.name);
            seen += 1;
        }
    }
    assert!(seen > 15, "{seen}");
}
