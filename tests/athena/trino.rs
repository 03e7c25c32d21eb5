//! Installs and starts a Trino server: the judge of what our SQL means, since Athena itself is Trino.
//!
//! It comes from Maven Central, as any other Java program, is unpacked once into the target folder without the plugins that
//! nobody needs here, and reads local files through its Hive connector.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use analyzer::athena::Row;
use serde_json::Value;

/// Set to `1`, it leaves out every test that needs the server.
const SKIP: &str = "PALISADE_SKIP_TRINO";
/// Which one: the version, and the Java that it needs.
const VERSION: &str = "476";
const JAVA_MIN: u32 = 24;
/// Half a minute on two busy cores; the rest is for a machine that is busier.
const START_TIMEOUT: Duration = Duration::from_secs(240);
const QUERY_TIMEOUT: Duration = Duration::from_secs(240);

/// A Trino server that ends with the process that started it.
#[derive(Debug)]
pub(crate) struct Trino {
    port: u16,
    files: PathBuf,
    _process: Child,
}

impl Trino {
    /// The server of this test process, or nothing where the operator wants none.
    pub(crate) fn shared() -> Option<&'static Trino> {
        static SHARED: OnceLock<Result<Trino, String>> = OnceLock::new();
        if std::env::var_os(SKIP).is_some_and(|value| value == "1") {
            eprintln!("left out: {SKIP}=1");
            return None;
        }
        match SHARED.get_or_init(Trino::start) {
            Ok(trino) => Some(trino),
            Err(reason) => panic!("{reason}; {SKIP}=1 leaves out the tests that need a Trino server"),
        }
    }

    /// The folder whose content is `local:///` to the server.
    pub(crate) fn files(&self) -> &Path {
        &self.files
    }

    /// Runs a statement, and gives its rows.
    pub(crate) fn run(&self, sql: &str) -> Result<Vec<Vec<Value>>, String> {
        let began = Instant::now();
        let mut answer = self.ask("POST", "/v1/statement", sql)?;
        let mut rows = Vec::new();
        loop {
            if let Some(error) = answer.get("error") {
                return Err(error["message"].as_str().unwrap_or_default().to_owned());
            }
            if let Some(Value::Array(data)) = answer.get_mut("data").map(Value::take) {
                rows.extend(data.into_iter().filter_map(|row| match row {
                    Value::Array(row) => Some(row),
                    _ => None,
                }));
            }
            let Some(next) = answer["nextUri"].as_str() else {
                return Ok(rows);
            };
            if began.elapsed() > QUERY_TIMEOUT {
                return Err("the query did not end in time".to_owned());
            }
            let path = next
                .split_once("//")
                .and_then(|(_, rest)| rest.find('/').map(|at| rest[at..].to_owned()));
            answer = self.ask("GET", &path.unwrap_or_default(), "")?;
        }
    }

    /// Runs one of our queries.
    pub(crate) fn rows(&self, sql: &str) -> Vec<Row> {
        let rows = self.run(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
        let text = |value: &Value| value.as_str().map(str::to_owned);
        rows.iter()
            .map(|row| Row {
                client: text(&row[0]),
                rule: text(&row[1]).unwrap(),
                minute: row[2].as_i64(),
                hits: row[3].as_i64().unwrap(),
                detail: text(&row[4]),
            })
            .collect()
    }

    /// One request, whose answer ends with the connection.
    fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value, String> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(QUERY_TIMEOUT))?;
            write!(
                stream,
                "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nX-Trino-User: test\r\nX-Trino-Catalog: hive\r\n\
                 X-Trino-Schema: default\r\nContent-Length: {}\r\n\r\n{body}",
                self.port,
                body.len()
            )?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = ask().map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        serde_json::from_str(body).map_err(|_| format!("{head}: {body}"))
    }

    fn start() -> Result<Trino, String> {
        let failed = |reason: String| format!("failed to start Trino: {reason}");
        let io_failed = |error: std::io::Error| failed(error.to_string());
        let (server, java) = (install()?, java()?);
        let port = free_port();
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("trino-{port}"));
        let (etc, files) = (home.join("etc"), home.join("files"));
        fs::create_dir_all(etc.join("catalog")).map_err(io_failed)?;
        fs::create_dir_all(&files).map_err(io_failed)?;
        let config = format!(
            "coordinator=true\nnode-scheduler.include-coordinator=true\nhttp-server.http.port={port}\n\
             discovery.uri=http://127.0.0.1:{port}\nnode.internal-address=127.0.0.1\nquery.max-memory=500MB\n\
             query.max-memory-per-node=500MB\nmemory.heap-headroom-per-node=300MB\ncatalog.management=static\n"
        );
        fs::write(etc.join("config.properties"), config).map_err(io_failed)?;
        let catalog = format!(
            "connector.name=hive\nhive.metastore=file\nhive.metastore.catalog.dir=local:///metastore\n\
             fs.native-local.enabled=true\n\
             local.location={}\nhive.ignore-absent-partitions=true\n",
            files.display()
        );
        fs::write(etc.join("catalog/hive.properties"), catalog).map_err(io_failed)?;
        let log = File::create(home.join("server.log")).map_err(io_failed)?;
        // The shell ends the server, and removes its files, when we end and its standard input closes.
        let script = "\"$@\" <&- & server=$!; cat >/dev/null; kill -9 $server; rm -rf \"$HOME_OF_TRINO\"";
        let option = |name: &str, path: &Path| format!("-D{name}={}", path.display());
        let process = Command::new("sh")
            .args(["-c", script, "trino"])
            .arg(java)
            .args([
                "-Xmx1500M",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-Dfile.encoding=UTF-8",
            ])
            .args([
                "--sun-misc-unsafe-memory-access=allow",
                "--add-modules=jdk.incubator.vector",
            ])
            .args(["-Djdk.attach.allowAttachSelf=true", "-cp", "lib/*"])
            .arg(option("config", &etc.join("config.properties")))
            .arg(option("catalog.config-dir", &etc.join("catalog")))
            .arg(option("node.data-dir", &home.join("data")))
            .args([
                "-Dnode.environment=test",
                "-Dnode.id=one",
                "-Dnode.bind-ip=127.0.0.1",
                "-Dplugin.dir=plugin",
            ])
            .arg("io.trino.server.TrinoServer")
            .current_dir(&server)
            .env("HOME_OF_TRINO", &home)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(io_failed)?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(io_failed)?;
        let mut trino = Trino {
            port,
            files,
            _process: process,
        };
        let began = Instant::now();
        loop {
            let info = trino.ask("GET", "/v1/info", "");
            let schema = "CREATE SCHEMA hive.default WITH (location = 'local:///default')";
            if info.is_ok_and(|info| info["starting"] == Value::Bool(false)) && trino.run(schema).is_ok() {
                return Ok(trino);
            }
            if began.elapsed() > START_TIMEOUT {
                let log = fs::read_to_string(home.join("server.log")).unwrap_or_default();
                let last = log
                    .lines()
                    .rfind(|line| line.contains("ERROR"))
                    .unwrap_or_default()
                    .to_owned();
                drop(trino._process.stdin.take());
                return Err(failed(format!("it did not answer in time; {last}")));
            }
            sleep(Duration::from_millis(250));
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port()
}

/// A Java that is new enough, among those that machines usually have.
fn java() -> Result<PathBuf, String> {
    let homes = std::env::var_os("JAVA_HOME").map(PathBuf::from).into_iter();
    let installed = fs::read_dir("/usr/lib/jvm")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    homes
        .chain(installed)
        .find(|home| {
            let release = fs::read_to_string(home.join("release")).unwrap_or_default();
            let version = release.lines().find_map(|line| line.strip_prefix("JAVA_VERSION=\""));
            let major = version.and_then(|version| version.split(['.', '"']).next());
            major
                .and_then(|major| major.parse().ok())
                .is_some_and(|major: u32| major >= JAVA_MIN)
        })
        .map(|home| home.join("bin/java"))
        .ok_or_else(|| {
            format!("failed to find Java {JAVA_MIN} or later in JAVA_HOME or /usr/lib/jvm, which Trino {VERSION} needs")
        })
}

/// The server's folder, below the target folder. Whoever comes first installs, the others wait.
fn install() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("trino");
    let (server, fetched) = (place.join(format!("trino-server-{VERSION}")), place.join("fetched"));
    let complete = place.join(format!("complete-{VERSION}"));
    let failed = |reason: String| format!("failed to install Trino {VERSION}: {reason}");
    let io_failed = |error: std::io::Error| failed(error.to_string());
    fs::create_dir_all(&place).map_err(io_failed)?;
    let lock = File::create(place.join("lock")).map_err(io_failed)?;
    lock.lock().map_err(io_failed)?;
    if complete.exists() {
        return Ok(server);
    }
    let artifact = format!("-Dartifact=io.trino:trino-server:{VERSION}:tar.gz");
    let copy = [
        &artifact,
        "-DoutputDirectory=fetched",
        "-Dmdep.stripVersion=true",
        "-Dtransitive=false",
    ];
    let plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1";
    run(Command::new("mvn").args(["-B", "-q", &format!("{plugin}:get"), &artifact, "-Dtransitive=false"]))
        .map_err(failed)?;
    run(Command::new("mvn")
        .args(["-B", "-q", &format!("{plugin}:copy")])
        .args(copy)
        .current_dir(&place))
    .map_err(failed)?;
    run(Command::new("tar")
        .arg("xzf")
        .arg(fetched.join("trino-server.tar.gz"))
        .current_dir(&place))
    .map_err(failed)?;
    fs::remove_dir_all(&fetched).map_err(io_failed)?;
    for plugin in fs::read_dir(server.join("plugin")).map_err(io_failed)?.flatten() {
        if plugin.file_name() != "hive" {
            fs::remove_dir_all(plugin.path()).map_err(io_failed)?;
        }
    }
    File::create(&complete).map_err(io_failed)?;
    Ok(server)
}

/// Runs a command to its end, or says what it said first.
fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("`{}`", command.get_program().to_string_lossy());
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{shown}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let line = said
        .lines()
        .find(|line| line.contains("ERROR") || line.contains("rror:"))
        .unwrap_or(&said);
    Err(format!("{shown}: {line}"))
}
