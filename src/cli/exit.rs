//! How a command ends: the documented exit codes, and failures with advice.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The exit codes, as `--help` and README document them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Could not be done.
    Failed = 1,
    /// The command line made no sense.
    Usage = 2,
    /// The policy was rejected.
    PolicyRejected = 3,
    /// Done, but some input could not be read.
    Incomplete = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command could not be done, and what to do next.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    exit: Exit,
    broken_pipe: bool,
}

impl Failure {
    /// A failure with exit code 1. `message` is one sentence without a full stop.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            hint: None,
            exit: Exit::Failed,
            broken_pipe: false,
        }
    }

    /// The command line made no sense.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(message).exit(Exit::Usage)
    }

    /// The same failure with advice.
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        Failure {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The same failure with another exit code.
    pub fn exit(self, exit: Exit) -> Failure {
        Failure { exit, ..self }
    }

    /// How the process ends.
    pub fn code(&self) -> Exit {
        self.exit
    }

    /// The advice, if there is any.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether nobody reads our output any more, which is no failure at all.
    pub fn is_broken_pipe(&self) -> bool {
        self.broken_pipe
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let failure = Failure::new(format!("failed to write the output: {error}"));
        Failure {
            broken_pipe: error.kind() == io::ErrorKind::BrokenPipe,
            ..failure
        }
    }
}
