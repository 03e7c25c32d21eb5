//! How fast Palisade reads WAF logs, beside what else could read them: `cargo run --release -p bench`.
//!
//! Makes the data, runs every program that is found in turns on one core and on all, checks that all give the same counts,
//! and prints medians, ratios and `docs/benchmarks.svg`. `cargo run --release -p bench -- scale` shows how cost grows;
//! `-- compare SEED RECORDS SECONDS` compares the two readers of records for long.

mod compare;
mod count;
mod others;
mod records;
mod scale;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use analyzer::Policy;
use records::Plan;

/// The data of the comparison.
const PLAN: Plan = Plan {
    records: 300_000,
    clients: 50_000,
    minutes: 60,
};

/// Into how many objects the same data is cut for several cores: a minute each.
const OBJECTS: u64 = 60;

/// How often every program runs, those that take long once.
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [] => side_by_side(),
        ["scale"] => scale::run(),
        ["bare" | "full", threads, files @ ..] => {
            let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
            child(words[0] == "bare", threads.parse().unwrap_or(1), &files)
        }
        ["compare", seed, records, seconds] => long_comparison(seed, records, seconds),
        _ => Err(io::Error::other(
            "there is `scale`, `compare SEED RECORDS SECONDS`, and nothing else",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn long_comparison(seed: &str, records: &str, seconds: &str) -> io::Result<()> {
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    let tell = |read, written| {
        let _ = writeln!(
            io::stdout(),
            "{read} records, about {written} of them as written, no disagreement"
        );
    };
    let (read, found) = compare::run(
        number(seed)?,
        number(records)?,
        Duration::from_secs(number(seconds)?),
        tell,
    );
    match found {
        None => Ok(()),
        Some(disagreement) => Err(io::Error::other(format!("after {read} records: {disagreement}"))),
    }
}

/// What one run of Palisade's own side does, in a process of its own like all others.
fn child(bare: bool, threads: usize, files: &[PathBuf]) -> io::Result<()> {
    let answer = if bare {
        count::bare(files, threads)?
    } else {
        count::full(&Policy::default_policy(), files, threads)?
    };
    writeln!(io::stderr(), "{}", peak_bytes())?;
    writeln!(io::stdout(), "{} {} {}", answer.groups, answer.requests, answer.squares)
}

/// The most memory this process had at once (proc(5): `VmHWM`).
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// One program on some files.
struct Run {
    name: String,
    one_core: bool,
    command: Command,
    rounds: usize,
    counts: bool,
    seconds: Vec<f64>,
    cpu: Vec<f64>,
    answer: String,
}

fn target() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The objects of the comparison: all in one, and the same cut into many.
fn data(target: &Path) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let data = target.join("bench-data");
    let (one, many) = (data.join("one"), data.join("many"));
    if !data.join("made").exists() {
        for (folder, objects) in [(&one, 1), (&many, OBJECTS)] {
            fs::create_dir_all(folder)?;
            records::write_objects(PLAN, objects, folder)?;
        }
        fs::write(data.join("made"), "")?;
    }
    let files = |folder: &Path| -> io::Result<Vec<PathBuf>> {
        let mut files = fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    };
    Ok((files(&one)?, files(&many)?))
}

fn side_by_side() -> io::Result<()> {
    let target = target();
    let (one, many) = data(&target)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (others, missing) = others::found(&target);
    let own = std::env::current_exe()?;
    let mut runs = Vec::new();
    for (threads, files) in [(1, &one), (cores, &many)] {
        for (name, work) in [
            ("Palisade", "bare"),
            ("Palisade, default policy counted and judged", "full"),
        ] {
            let mut command = Command::new(&own);
            command.arg(work).arg(threads.to_string()).args(files);
            runs.push(Run::new(name, threads, ROUNDS, work == "bare", command));
        }
        for other in others.iter().filter(|other| threads == 1 || other.threads) {
            let rounds = if other.slow { 1 } else { ROUNDS };
            runs.push(Run::new(
                &other.name,
                threads,
                rounds,
                other.counts,
                other.command(files, threads),
            ));
        }
    }
    // The same work on one core, to see what a second core is good for; and a single object on all.
    let mut command = Command::new(&own);
    command.arg("bare").arg("1").args(&many);
    runs.push(Run::new("Palisade, many objects", 1, ROUNDS, true, command));
    let mut command = Command::new(&own);
    command.arg("bare").arg(cores.to_string()).args(&one);
    runs.push(Run::new("Palisade, one object", cores, ROUNDS, true, command));
    for round in 0..ROUNDS {
        for run in runs.iter_mut().filter(|run| round < run.rounds) {
            run.once()?;
        }
    }
    report(&mut runs, &missing, cores)
}

impl Run {
    fn new(name: &str, threads: usize, rounds: usize, counts: bool, command: Command) -> Run {
        // `taskset` pins the program and what it starts; without it the scheduler decides.
        let mut pinned = Command::new("taskset");
        pinned
            .args(["-c", "0"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            pinned.env(key, value.unwrap_or_default());
        }
        Run {
            name: name.to_owned(),
            one_core: threads == 1,
            command: if threads == 1 { pinned } else { command },
            rounds,
            counts,
            seconds: Vec::new(),
            cpu: Vec::new(),
            answer: String::new(),
        }
    }

    fn once(&mut self) -> io::Result<()> {
        let (began, cpu_before) = (Instant::now(), cpu_of_children());
        self.command.stdin(Stdio::null()).stderr(Stdio::null());
        if self.counts {
            let output = self.command.output()?;
            self.answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        } else {
            self.command.stdout(Stdio::null()).status()?;
        }
        self.seconds.push(began.elapsed().as_secs_f64());
        self.cpu.push(cpu_of_children() - cpu_before);
        Ok(())
    }
}

/// The processor seconds of the programs that have ended, from the kernel (proc(5): `cutime` and `cstime`, a hundred a second).
fn cpu_of_children() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or_default()
    };
    (ticks(13) + ticks(14)) / 100.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn report(runs: &mut [Run], missing: &[String], cores: usize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let expected = runs
        .iter()
        .find(|run| run.counts)
        .map(|run| run.answer.clone())
        .unwrap_or_default();
    writeln!(
        out,
        "| program | cores | wall s | CPU s | times Palisade's CPU |\n|---|---|---|---|---|"
    )?;
    let own = median(&mut runs[0].cpu);
    let mut bars = Vec::new();
    for run in &mut *runs {
        let (wall, cpu) = (median(&mut run.seconds), median(&mut run.cpu));
        let cores = if run.one_core { 1 } else { cores };
        writeln!(
            out,
            "| {} | {cores} | {wall:.2} | {cpu:.2} | {:.1} |",
            run.name,
            cpu / own
        )?;
        if run.one_core {
            bars.push((run.name.clone(), cpu));
        }
    }
    for what in missing {
        writeln!(out, "not found: {what}")?;
    }
    // The two answers of the judged count are about something else.
    let wrong: Vec<&str> = runs
        .iter()
        .filter(|run| run.counts && run.answer != expected)
        .map(|run| run.name.as_str())
        .collect();
    writeln!(out, "\ngroups, requests, squares: {expected}")?;
    fs::create_dir_all("docs")?;
    fs::write("docs/benchmarks.svg", svg(&bars))?;
    if wrong.is_empty() {
        writeln!(out, "all programs gave the same counts")
    } else {
        Err(io::Error::other(format!(
            "other counts than the first: {}",
            wrong.join(", ")
        )))
    }
}

/// Bars, as long as the programs took.
fn svg(bars: &[(String, f64)]) -> String {
    let longest = bars.iter().map(|(_, seconds)| *seconds).fold(0.1, f64::max);
    let height = 30 * bars.len() + 40;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"860\" height=\"{height}\" fill=\"white\"/>\n<text x=\"10\" y=\"22\">CPU seconds on one core for 300,000 records (gzip), logarithmic</text>\n"
    );
    for (at, (name, seconds)) in bars.iter().enumerate() {
        let (y, width) = (
            40 + 30 * at,
            420.0 * (1.0 + seconds * 20.0).ln() / (1.0 + longest * 20.0).ln(),
        );
        let fill = if name.starts_with("Palisade") { "#2a7" } else { "#89a" };
        let _ = writeln!(
            svg,
            "<text x=\"300\" y=\"{}\" text-anchor=\"end\">{name}</text><rect x=\"310\" y=\"{y}\" width=\"{width:.0}\" height=\"20\" fill=\"{fill}\"/><text x=\"{:.0}\" y=\"{}\">{seconds:.2}</text>",
            y + 15,
            316.0 + width,
            y + 15,
        );
    }
    svg + "</svg>\n"
}
