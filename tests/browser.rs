//! A real browser for pages: Debian's Chromium, driven by `tests/browser/look.mjs`.
//!
//! playwright-core and axe-core are pinned in `tests/browser/package-lock.json` and installed once, into `target/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

const CHROMIUM: &str = "/usr/bin/chromium";
const LOCK: &str = include_str!("browser/package-lock.json");

/// A browser that is there, and the script that drives it.
pub(crate) struct Browser {
    folder: PathBuf,
    /// One look at a time: two cores are not enough for two browsers.
    looking: Mutex<()>,
}

impl Browser {
    /// The browser of this test process; nothing where there is none, except in CI, which must have one.
    pub(crate) fn shared() -> Option<&'static Browser> {
        static SHARED: OnceLock<Result<Browser, String>> = OnceLock::new();
        let missing = [CHROMIUM, "/usr/bin/node", "/usr/bin/npm"]
            .into_iter()
            .find(|program| !Path::new(program).exists());
        if let Some(program) = missing {
            let why =
                format!("`{program}` is not there, so no page was looked at; `apt-get install chromium nodejs npm`");
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
            eprintln!("left out: {why}");
            return None;
        }
        match SHARED.get_or_init(Browser::install) {
            Ok(browser) => Some(browser),
            Err(why) => panic!("{why}"),
        }
    }

    /// Where screenshots are, for people to look at.
    pub(crate) fn screens(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages")
    }

    /// Looks at pages and returns what was seen of each, in every width and colour scheme.
    pub(crate) fn look(&self, pages: &Value) -> Vec<Value> {
        let _one = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(self.screens()).unwrap();
        let job = tempfile::NamedTempFile::new().unwrap();
        let text = json!({"chromium": CHROMIUM, "screens": self.screens(), "pages": pages});
        fs::write(job.path(), text.to_string()).unwrap();
        let output = Command::new("node")
            .arg("look.mjs")
            .arg(job.path())
            .current_dir(&self.folder)
            .output()
            .unwrap();
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{out}\n{err}");
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn install() -> Result<Browser, String> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
        let name = format!("browser-{:016x}", xxh3_64(LOCK.as_bytes()));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let failed = |why: String| format!("failed to install what drives the browser: {why}");
        let copy = |file: &str| {
            fs::create_dir_all(&folder)
                .and_then(|()| fs::copy(source.join(file), folder.join(file)))
                .map_err(|error| failed(error.to_string()))
        };
        for file in ["package.json", "package-lock.json", "look.mjs"] {
            copy(file)?;
        }
        let done = folder.join("installed");
        if !done.exists() {
            let install = Command::new("npm")
                .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
                .current_dir(&folder)
                .output()
                .map_err(|error| failed(error.to_string()))?;
            if !install.status.success() {
                return Err(failed(String::from_utf8_lossy(&install.stderr).into_owned()));
            }
            fs::write(&done, "").map_err(|error| failed(error.to_string()))?;
        }
        Ok(Browser {
            folder,
            looking: Mutex::new(()),
        })
    }
}
