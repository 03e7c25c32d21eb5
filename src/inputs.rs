//! Finds the log objects behind the paths of a command line.
//!
//! Every file counts, whatever it is called: only its bytes say what it is. Folders are searched recursively; what begins
//! with a dot is left alone. A path that cannot be read is a problem to report, and never costs its neighbours.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::replay::Period;

/// The log objects behind some paths.
#[derive(Debug, Default)]
pub struct Inputs {
    /// What there is to read, in the order of the command line, folders sorted by name, each file once.
    pub objects: Vec<LogObject>,
    /// How many objects were left out because their key says that they were delivered outside the period.
    pub pruned: u64,
    /// Whether the keys tell the time in another zone than UTC, so that nothing was left out because of them.
    pub foreign_time_zone: bool,
    /// What could not be looked at.
    pub problems: Vec<Problem>,
}

/// Something that holds WAF log records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogObject {
    /// A file and its size in bytes, zero where that is unknown (a pipe).
    File(PathBuf, u64),
    /// `-`: standard input.
    Stdin,
}

impl LogObject {
    /// As a person knows it.
    pub fn name(&self) -> String {
        match self {
            LogObject::File(path, _) => path.display().to_string(),
            LogObject::Stdin => "standard input".to_owned(),
        }
    }

    /// In bytes; zero where unknown.
    pub fn size(&self) -> u64 {
        match self {
            LogObject::File(_, size) => *size,
            LogObject::Stdin => 0,
        }
    }
}

/// An input that could not be read, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Which.
    pub object: String,
    /// Why, as a fragment.
    pub what: String,
}

/// Finds all log objects behind `paths` whose keys do not rule `period` out.
pub fn find(paths: &[PathBuf], period: &Period) -> Inputs {
    let mut inputs = Inputs::default();
    let mut seen = BTreeSet::new();
    let mut pruned = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            if !inputs.objects.contains(&LogObject::Stdin) {
                inputs.objects.push(LogObject::Stdin);
            }
            continue;
        }
        if path.as_os_str().as_encoded_bytes().starts_with(b"s3://") {
            let what = "buckets are not read directly yet; copy the logs first, for example with `aws s3 sync`";
            inputs.problems.push(Problem {
                object: path.display().to_string(),
                what: what.to_owned(),
            });
            continue;
        }
        match path.metadata() {
            Err(error) => inputs.problems.push(problem(path, &error)),
            Ok(metadata) if metadata.is_dir() => {
                let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().first() == Some(&b'.');
                let walk = WalkDir::new(path).follow_links(true).sort_by_file_name().into_iter();
                for entry in walk.filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name())) {
                    match entry {
                        Ok(entry) if entry.file_type().is_file() => {
                            let size = entry.metadata().map_or(0, |metadata| metadata.len());
                            inputs.add(entry.into_path(), size, period, &mut seen, &mut pruned);
                        }
                        Ok(_) => {}
                        Err(error) => {
                            let at = error.path().unwrap_or(path).to_owned();
                            let what = error
                                .io_error()
                                .map_or_else(|| "the folder contains itself".to_owned(), describe);
                            inputs.problems.push(Problem {
                                object: at.display().to_string(),
                                what,
                            });
                        }
                    }
                }
            }
            Ok(metadata) => inputs.add(path.clone(), metadata.len(), period, &mut seen, &mut pruned),
        }
    }
    // Firehose names objects in a zone of the stream's choice (its CustomTimeZone), which no key shows. So before anything
    // is left out because of its name, a few of those objects are asked whether their names tell the truth.
    let probes = [0, pruned.len() / 2, pruned.len().saturating_sub(1)];
    if probes
        .iter()
        .filter_map(|at| pruned.get(*at))
        .any(|(path, _)| contradicts_its_key(path))
    {
        inputs.foreign_time_zone = true;
        inputs
            .objects
            .extend(pruned.into_iter().map(|(path, size)| LogObject::File(path, size)));
    } else {
        inputs.pruned = pruned.len() as u64;
    }
    inputs
}

/// How much of an object is read to see its first records' times.
const PROBE_BYTES: u64 = 256 * 1024;

/// Whether an object holds a request that its key says it can't hold.
fn contradicts_its_key(path: &Path) -> bool {
    let name = key_of(path);
    let key = ingest::object_key::parse(&name);
    let Ok(file) = std::fs::File::open(path) else {
        return false;
    };
    let mut contradicts = false;
    ingest::scan(file.take(PROBE_BYTES), |request| {
        let second = request.timestamp_ms.div_euclid(1000);
        contradicts |= !key.may_hold(Some(second), Some(second + 1));
    });
    contradicts
}

/// A path as a key.
fn key_of(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

impl Inputs {
    fn add(
        &mut self,
        path: PathBuf,
        size: u64,
        period: &Period,
        seen: &mut BTreeSet<PathBuf>,
        pruned: &mut Vec<(PathBuf, u64)>,
    ) {
        let identity = path.canonicalize().unwrap_or_else(|_| path.clone());
        if !seen.insert(identity) {
            return;
        }
        let floor = |ms: i64| ms.div_euclid(1000);
        if !ingest::object_key::parse(&key_of(&path)).may_hold(period.from_ms.map(floor), period.to_ms.map(floor)) {
            pruned.push((path, size));
            return;
        }
        self.objects.push(LogObject::File(path, size));
    }
}

fn problem(path: &Path, error: &std::io::Error) -> Problem {
    Problem {
        object: path.display().to_string(),
        what: describe(error),
    }
}

/// An I/O error without the number that means nothing to people.
pub(crate) fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file or folder".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error
            .to_string()
            .split(" (os error")
            .next()
            .unwrap_or_default()
            .to_lowercase(),
    }
}
