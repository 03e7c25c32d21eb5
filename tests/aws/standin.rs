//! Installs and starts the stand-in for AWS.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_wafv2::config::{Credentials, SharedCredentialsProvider};
use xxhash_rust::xxh3::xxh3_64;

/// Set to `1`, it leaves out every test that needs the stand-in.
const SKIP: &str = "PALISADE_SKIP_AWS";
const REQUIREMENTS: &str = include_str!("requirements.txt");
/// It takes a second or two; the rest is for a machine that is busy.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// AWS on this machine: ministack, as strict about IP sets as WAF is. It ends with the process that started it.
#[derive(Debug)]
pub(crate) struct StandIn {
    port: u16,
    python: PathBuf,
    /// Holds the pipe that keeps the stand-in alive.
    _process: Child,
}

impl StandIn {
    /// The stand-in of this test process, or nothing where the operator wants none. Tests share it: give what you
    /// create a name of its own, or a Region of its own.
    pub(crate) fn shared() -> Option<&'static StandIn> {
        static SHARED: OnceLock<Result<StandIn, String>> = OnceLock::new();
        StandIn::of_this_process(&SHARED, false)
    }

    /// A second one, in which whoever calls needs the permission to.
    pub(crate) fn with_permissions() -> Option<&'static StandIn> {
        static WITH_PERMISSIONS: OnceLock<Result<StandIn, String>> = OnceLock::new();
        StandIn::of_this_process(&WITH_PERMISSIONS, true)
    }

    fn of_this_process(
        cell: &'static OnceLock<Result<StandIn, String>>,
        permissions: bool,
    ) -> Option<&'static StandIn> {
        if std::env::var_os(SKIP).is_some_and(|value| value == "1") {
            eprintln!("left out: {SKIP}=1");
            return None;
        }
        match cell.get_or_init(|| StandIn::start(permissions)) {
            Ok(stand_in) => Some(stand_in),
            Err(reason) => panic!("{reason}; {SKIP}=1 leaves out the tests that need the AWS stand-in"),
        }
    }

    /// Where every service listens.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the environment of a program needs to reach nothing but the stand-in; the endpoint comes first.
    pub(crate) fn environment(&self, region: &str) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_REGION", region.to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ]
    }

    /// The Python that the stand-in runs on, with boto3.
    pub(crate) fn python(&self) -> &Path {
        &self.python
    }

    /// A folder that goes when the stand-in does.
    pub(crate) fn temporary(&self) -> PathBuf {
        temporary(self.port)
    }

    /// A configuration that reaches nothing but the stand-in. Take a new one per test: its connections live in the
    /// runtime that opened them.
    pub(crate) fn config(&self, region: &'static str) -> SdkConfig {
        let credentials = Credentials::new("test", "test", None, None, "stand-in");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static(region))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(self.endpoint())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build()
    }

    fn start(permissions: bool) -> Result<StandIn, String> {
        let python = install()?;
        // Between our finding a free port and the stand-in's taking it, somebody else can be faster.
        let start = || StandIn::start_on(&python, free_port(), permissions);
        start().or_else(|_| start())
    }

    fn start_on(python: &Path, port: u16, permissions: bool) -> Result<StandIn, String> {
        let temporary = temporary(port);
        let failed = |reason: String| format!("failed to start the AWS stand-in: {reason}");
        fs::create_dir_all(&temporary).map_err(|error| failed(error.to_string()))?;
        let mut log = tempfile::tempfile().map_err(|error| failed(error.to_string()))?;
        let mut process = Command::new(python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws/standin.py"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMPDIR", &temporary)
            .env("GATEWAY_PORT", port.to_string())
            .env("BIND_HOST", "127.0.0.1")
            .env("IOT_MTLS_ENABLED", "0") // or it also listens to the world
            .env("MINISTACK_ACCOUNT_ID", "111122223333")
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")) // for the Lambda functions it runs
            .env("AUTH", permissions.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped()) // it ends when this closes
            .stdout(log.try_clone().map_err(|error| failed(error.to_string()))?)
            .stderr(log.try_clone().map_err(|error| failed(error.to_string()))?)
            .process_group(0)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;

        let started = Instant::now();
        while !healthy(port) {
            let ended = process.try_wait().ok().flatten();
            if ended.is_some() || started.elapsed() > START_TIMEOUT {
                let _ = process.kill();
                let _ = process.wait();
                let mut text = String::new();
                let _ = log.seek(SeekFrom::Start(0)).and_then(|_| log.read_to_string(&mut text));
                let last = text.trim_end().rsplit('\n').next().unwrap_or_default();
                return Err(failed(ended.map_or("it did not answer in time".into(), |status| {
                    format!("{status}, {last}")
                })));
            }
            sleep(Duration::from_millis(50));
        }
        Ok(StandIn {
            port,
            python: python.to_owned(),
            _process: process,
        })
    }
}

fn temporary(port: u16) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("standin-{port}"))
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port()
}

fn healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /_ministack/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The Python that has everything installed, in a folder of the target folder which is named after what is in it.
/// Whoever comes first installs, the others wait.
fn install() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("standin-venv");
    let venv = place.join(format!("{:016x}", xxh3_64(REQUIREMENTS.as_bytes())));
    let (python, complete) = (venv.join("bin/python"), venv.join("complete"));
    let failed = |reason: String| format!("failed to install the AWS stand-in: {reason}");
    let io_failed = |error: std::io::Error| failed(error.to_string());

    fs::create_dir_all(&place).map_err(io_failed)?;
    let lock = File::create(venv.with_extension("lock")).map_err(io_failed)?;
    lock.lock().map_err(io_failed)?;
    if complete.exists() {
        return Ok(python);
    }
    let requirements = venv.join("requirements.txt");
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).map_err(failed)?;
    fs::write(&requirements, REQUIREMENTS).map_err(io_failed)?;
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--require-hashes",
        "--requirement",
    ];
    run(Command::new(&python).args(install).arg(&requirements)).map_err(failed)?;
    File::create(&complete).map_err(io_failed)?;
    Ok(python)
}

/// Runs a command to its end, or says what it said last.
fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("`{}`", command.get_program().to_string_lossy());
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{shown}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    });
    let last = said.trim_end().rsplit('\n').next().unwrap_or_default();
    Err(format!("{shown}: {last}"))
}
