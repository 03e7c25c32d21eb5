//! What else could read WAF logs: the same count, by other programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program that was found, and how it is asked for the count of some files.
pub(crate) struct Other {
    /// For the table.
    pub(crate) name: String,
    program: PathBuf,
    arguments: Vec<String>,
    /// Whether it counts; `igzip` only unpacks.
    pub(crate) counts: bool,
    /// Whether it can use a second core.
    pub(crate) threads: bool,
    /// So slow that one run must do.
    pub(crate) slow: bool,
}

impl Other {
    /// The command for these files on so many threads.
    pub(crate) fn command(&self, files: &[PathBuf], threads: usize) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env("BENCH_THREADS", threads.to_string())
            .args(files);
        command
    }
}

/// A python that has the packages of `benches/requirements.txt`, installed once below `target`.
pub(crate) fn python(target: &Path) -> Option<PathBuf> {
    let venv = target.join("bench-venv");
    let python = venv.join("bin/python");
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("requirements.txt");
    let done = venv.join("installed");
    if !done.exists() {
        let run = |program: &Path, arguments: &[&str]| {
            let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        let ok = run(Path::new("python3"), &["-m", "venv", &venv.to_string_lossy()])
            && run(
                &python,
                &["-m", "pip", "install", "--quiet", "-r", &requirements.to_string_lossy()],
            );
        if !ok {
            return None;
        }
        std::fs::write(&done, "").ok()?;
    }
    Some(python)
}

/// The programs that are here, and what is not.
pub(crate) fn found(target: &Path) -> (Vec<Other>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let script = |name: &str| format!("{}/others/{name}", env!("CARGO_MANIFEST_DIR"));
    match python(target) {
        Some(python) => {
            for (name, file, threads, slow) in [
                ("DuckDB", "duckdb_count.py", true, false),
                ("ClickHouse (chdb)", "chdb_count.py", true, false),
                ("Python json", "json_count.py", false, true),
            ] {
                found.push(Other {
                    name: name.to_owned(),
                    program: python.clone(),
                    arguments: vec![script(file)],
                    counts: true,
                    threads,
                    slow,
                });
            }
        }
        None => {
            missing.push("DuckDB, ClickHouse and Python's json: `python3 -m venv` or `pip install` failed".to_owned())
        }
    }
    let has = |program: &str| {
        let version = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        version.is_ok_and(|status| status.success())
    };
    if has("igzip") {
        found.push(Other {
            name: "igzip -dc (only unpacks)".to_owned(),
            program: "igzip".into(),
            arguments: vec!["-dc".to_owned()],
            counts: false,
            threads: false,
            slow: false,
        });
    } else {
        missing.push("igzip: on Debian in the package `isal`".to_owned());
    }
    if has("jq") {
        found.push(Other {
            name: "gzip -dc | jq".to_owned(),
            program: "sh".into(),
            arguments: vec![script("jq_count.sh")],
            counts: true,
            threads: false,
            slow: true,
        });
    } else {
        missing.push("jq".to_owned());
    }
    (found, missing)
}
