//! Writes the page that `--html` asks for.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use analyzer::{Policy, Tally};

use super::exit::Failure;
use super::output::Printer;
use super::progress::Bar;
use super::time::rfc3339;
use crate::inputs::{self, Inputs, LogObject};
use crate::page::{Chosen, Report, Unread};
use crate::replay::{Event, Period, read};
use crate::report::Summary;
use crate::survey::{Found, Frequent, Search, Wanted};

/// A page that will be written.
pub(super) struct Page<'a> {
    path: &'a Path,
    file: File,
    /// What standard input said, for it is read twice.
    spooled: Option<tempfile::NamedTempFile>,
}

/// What was judged, and what came of it.
pub(super) struct Judged<'a> {
    pub(super) policy: &'a Policy,
    pub(super) policy_name: String,
    pub(super) source: String,
    pub(super) arguments: String,
    pub(super) tally: &'a Tally,
    pub(super) events: &'a [Event],
    pub(super) summary: &'a Summary,
}

impl<'a> Page<'a> {
    /// Opens the file at once: that it can't be written should not be news after an hour of reading.
    pub(super) fn open(path: &'a Path) -> Result<Page<'a>, Failure> {
        let opened = OpenOptions::new().create(true).write(true).truncate(false).open(path);
        let file = opened.map_err(|error| failed(path, &error))?;
        Ok(Page {
            path,
            file,
            spooled: None,
        })
    }

    /// Keeps standard input in a temporary file, for it is read twice.
    pub(super) fn spool(&mut self, inputs: &mut Inputs) -> Result<(), Failure> {
        for object in &mut inputs.objects {
            if *object == LogObject::Stdin {
                let spool = || -> io::Result<(tempfile::NamedTempFile, u64)> {
                    let mut spool = tempfile::NamedTempFile::new()?;
                    let bytes = io::copy(&mut io::stdin().lock(), &mut spool)?;
                    Ok((spool, bytes))
                };
                let (spool, bytes) = spool().map_err(|error| {
                    Failure::new(format!("failed to keep standard input: {}", inputs::describe(&error)))
                        .hint("a page needs logs to be read twice; there must be room for them in the temporary folder")
                })?;
                *object = LogObject::File(spool.path().to_owned(), bytes);
                self.spooled = Some(spool);
            }
        }
        Ok(())
    }

    /// The name of an object as a person knows it.
    pub(super) fn name(&self, object: String) -> String {
        let spooled = self
            .spooled
            .as_ref()
            .map(|spooled| spooled.path().display().to_string());
        if spooled.as_ref() == Some(&object) {
            LogObject::Stdin.name()
        } else {
            object
        }
    }

    /// Writes the page. `requests` looks for those behind the verdicts.
    pub(super) fn write(
        mut self,
        judged: Judged<'_>,
        requests: impl FnOnce(&Chosen<'_>) -> Result<Found, Unread>,
        printer: &Printer,
    ) -> Result<(), Failure> {
        let chosen = Chosen::of(judged.events, judged.tally);
        let found = requests(&chosen);
        let report = Report {
            source: judged.source,
            arguments: judged.arguments,
            policy_name: judged.policy_name,
            policy: judged.policy,
            tally: judged.tally,
            summary: judged.summary,
            chosen: &chosen,
            events: judged.events,
            found: found.as_ref().map_err(|why| *why),
            live: None,
        };
        let html = report.html();
        let written = self.file.set_len(0).and_then(|()| self.file.write_all(html.as_bytes()));
        written.map_err(|error| failed(self.path, &error))?;
        printer.note(&format!("The page is in `{}`", self.path.display()));
        Ok(())
    }
}

/// Reads the logs once more, for the requests behind what a page shows.
pub(super) fn search(
    policy: &Policy,
    frequent: Frequent,
    (inputs, period, threads): (&Inputs, Period, usize),
    printer: &Printer,
) -> impl FnOnce(&Chosen<'_>) -> Result<Found, Unread> {
    move |chosen| {
        let wanted = Wanted::new(
            frequent,
            &chosen.events,
            chosen.bans_cut.iter().copied(),
            chosen.clients.iter().copied(),
        );
        let bar = Bar::start(printer, inputs);
        let reading = read(inputs, period, threads, &bar, || Search::new(policy, &wanted));
        bar.finish();
        Ok(reading.collected.found)
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!(
        "failed to write `{}`: {}",
        path.display(),
        inputs::describe(error)
    ))
    .hint("name a file in a folder that exists")
}

/// The end of a command line that reads the same logs by the same policy.
pub(super) fn arguments<'a>(policy: Option<&Path>, period: Period, paths: impl Iterator<Item = &'a Path>) -> String {
    let mut words = Vec::new();
    if let Some(policy) = policy {
        words.extend(["--policy".to_owned(), quoted(policy)]);
    }
    for (name, ms) in [("--from", period.from_ms), ("--to", period.to_ms)] {
        if let Some(ms) = ms {
            words.extend([name.to_owned(), rfc3339(ms)]);
        }
    }
    words.extend(paths.map(quoted));
    words.join(" ")
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
