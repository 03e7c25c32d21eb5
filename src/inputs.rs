//! Finds the log objects behind the paths of a command line.
//!
//! Every file counts, whatever it is called: only its bytes say what it is. Folders are searched recursively; what begins
//! with a dot is left alone. A path that cannot be read is a problem to report, and never costs its neighbours.

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use analyzer::Minute;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc::{Receiver, channel};
use walkdir::WalkDir;

use crate::engine::chain;
use crate::logs::{LogBucket, Logs as _};
use crate::place::{Aws, Place, s3_client};
use crate::replay::Period;
use crate::store::{Bucket, Listed, Store, StoreError, StoreErrorKind};

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
    /// What reads buckets, if any were named.
    runtime: Option<Runtime>,
}

/// Something that holds WAF log records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogObject {
    /// A file and its size in bytes, zero where that is unknown (a pipe).
    File(PathBuf, u64),
    /// An object in a bucket.
    Remote(Remote),
    /// `-`: standard input.
    Stdin,
}

/// An object in a bucket, and the way to it.
#[derive(Debug, Clone)]
pub struct Remote {
    logs: LogBucket,
    runtime: Handle,
    key: String,
    name: String,
    size: u64,
}

impl Remote {
    /// Begins to fetch it, before somebody has the time to read it.
    fn fetch(&self) -> Fetch {
        let (sender, receiver) = channel(CHUNKS_WAITING_MAX);
        let (logs, key) = (self.logs.clone(), self.key.clone());
        // Whoever drops the receiver ends this.
        self.runtime.spawn(async move {
            let mut body = match logs.body(&key, 0).await {
                Ok(body) => body,
                Err(error) => return drop(sender.send(Chunk::Refused(error)).await),
            };
            let (mut position, mut resumed) = (0, 0);
            let mut chunk = Chunk::Bytes(Vec::new());
            while sender.send(chunk).await.is_ok() {
                chunk = match body.next().await {
                    Some(Ok(bytes)) => {
                        position += bytes.len() as u64;
                        Chunk::Bytes(bytes.into())
                    }
                    // The SDK tries again what gets no answer, but not what breaks off in the middle of one.
                    Some(Err(_)) if resumed < RESUMED_MAX => {
                        resumed += 1;
                        match logs.body(&key, position).await {
                            Ok(rest) => body = rest,
                            Err(error) => return drop(sender.send(Chunk::Failed(io::Error::other(error))).await),
                        }
                        Chunk::Bytes(Vec::new())
                    }
                    Some(Err(error)) => {
                        return drop(sender.send(Chunk::Failed(io::Error::other(chain(&error)))).await);
                    }
                    None => return,
                };
            }
        });
        Fetch(receiver)
    }
}

/// What comes of an object that is fetched.
enum Chunk {
    /// The bucket does not give it.
    Refused(StoreError),
    /// Some of its bytes; none at first, to say that it is there.
    Bytes(Vec<u8>),
    /// It broke off.
    Failed(io::Error),
}

/// Chunks of an object that may wait to be read: about as much as an object of Firehose has, and a bound on the memory.
const CHUNKS_WAITING_MAX: usize = 64;

/// So often is the rest of an object asked for when its download broke off.
const RESUMED_MAX: u32 = 3;

/// An object that will be read soon.
pub enum Begun<'o> {
    /// A file, not open yet.
    File(&'o Path),
    /// In a bucket, and being fetched.
    Remote(Fetch),
    /// Standard input.
    Stdin,
}

/// An object that is being fetched.
pub struct Fetch(Receiver<Chunk>);

impl Fetch {
    /// Its bytes as they come; blocks until they do.
    ///
    /// # Errors
    /// When the bucket does not give it.
    pub fn open(mut self) -> Result<impl Read + Send, StoreError> {
        if let Some(Chunk::Refused(error)) = self.0.blocking_recv() {
            return Err(error);
        }
        Ok(Fetched {
            chunks: self.0,
            chunk: io::Cursor::default(),
        })
    }
}

struct Fetched {
    chunks: Receiver<Chunk>,
    chunk: io::Cursor<Vec<u8>>,
}

impl Read for Fetched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.chunk.read(buffer)? {
                0 if !buffer.is_empty() => {}
                read => return Ok(read),
            }
            self.chunk = match self.chunks.blocking_recv() {
                Some(Chunk::Bytes(bytes)) => io::Cursor::new(bytes),
                Some(Chunk::Failed(error)) => return Err(error),
                Some(Chunk::Refused(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            };
        }
    }
}

impl PartialEq for Remote {
    fn eq(&self, other: &Remote) -> bool {
        self.name == other.name
    }
}

impl Eq for Remote {}

impl LogObject {
    /// Where to read it; what is far away begins to be fetched.
    pub fn begin(&self) -> Begun<'_> {
        match self {
            LogObject::File(path, _) => Begun::File(path),
            LogObject::Remote(remote) => Begun::Remote(remote.fetch()),
            LogObject::Stdin => Begun::Stdin,
        }
    }

    /// As a person knows it.
    pub fn name(&self) -> String {
        match self {
            LogObject::File(path, _) => path.display().to_string(),
            LogObject::Remote(remote) => remote.name.clone(),
            LogObject::Stdin => "standard input".to_owned(),
        }
    }

    /// In bytes; zero where unknown.
    pub fn size(&self) -> u64 {
        match self {
            LogObject::File(_, size) => *size,
            LogObject::Remote(remote) => remote.size,
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
    let (mut seen, mut seen_remote) = (BTreeSet::new(), HashSet::new());
    let mut pruned = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            if !inputs.objects.contains(&LogObject::Stdin) {
                inputs.objects.push(LogObject::Stdin);
            }
            continue;
        }
        if let Some(Ok(Place::Bucket { bucket, prefix })) = path.to_str().map(str::parse) {
            if let Err(error) = inputs.find_remote(&bucket, &prefix, period, &mut seen_remote) {
                inputs.problems.push(Problem {
                    object: path.display().to_string(),
                    what: error.to_string(),
                });
            }
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
        inputs.pruned += pruned.len() as u64;
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

/// Up to so many hours of a period are listed one by one; beyond that, listing everything takes fewer requests.
const HOURS_MAX: i64 = 31 * 24;

impl From<Vec<LogObject>> for Inputs {
    fn from(objects: Vec<LogObject>) -> Inputs {
        Inputs {
            objects,
            ..Inputs::default()
        }
    }
}

impl Inputs {
    /// Lists a bucket, down to the hours of the period where its keys have them.
    fn find_remote(
        &mut self,
        bucket: &str,
        prefix: &str,
        period: &Period,
        seen: &mut HashSet<String>,
    ) -> Result<(), StoreError> {
        let failed = |error: io::Error| StoreError::new("start", StoreErrorKind::Failed(error.to_string()));
        if self.runtime.is_none() {
            let built = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build();
            self.runtime = Some(built.map_err(failed)?);
        }
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let client = runtime.block_on(async { s3_client(Aws::default().config().await) });
        let logs = LogBucket::new(client.clone(), bucket, prefix);
        let (from_s, to_s) = period.seconds();
        let mut listed = Vec::new();
        if let (Some(from_s), Some(to_s)) = (from_s, to_s)
            && (to_s - from_s) / 3600 <= HOURS_MAX
        {
            listed = runtime.block_on(logs.list(Minute::of_ms(from_s * 1000), Minute::of_ms(to_s * 1000 + 59_999)))?;
        }
        if listed.is_empty() {
            let all = runtime.block_on(Bucket::new(client, bucket, "").list(prefix))?;
            let before = all.len();
            listed = all;
            listed.retain(|object| ingest::object_key::parse(&object.key).may_hold(from_s, to_s));
            self.pruned += (before - listed.len()) as u64;
        }
        for Listed { key, size } in listed {
            let (logs, runtime, name) = (logs.clone(), runtime.handle().clone(), format!("s3://{bucket}/{key}"));
            if seen.insert(name.clone()) {
                self.objects.push(LogObject::Remote(Remote {
                    logs,
                    runtime,
                    key,
                    name,
                    size,
                }));
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        path: PathBuf,
        size: u64,
        period: &Period,
        seen: &mut BTreeSet<PathBuf>,
        pruned: &mut Vec<(PathBuf, u64)>,
    ) {
        let (from_s, to_s) = period.seconds();
        let identity = path.canonicalize().unwrap_or_else(|_| path.clone());
        if !seen.insert(identity) {
            return;
        }
        if !ingest::object_key::parse(&key_of(&path)).may_hold(from_s, to_s) {
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
