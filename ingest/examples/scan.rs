//! Scans log files and says how fast that went: `cargo run --release -p ingest --example scan -- <file>…`

use std::fs::File;
use std::io::{self, Write};
use std::time::Instant;

fn main() -> io::Result<()> {
    for path in std::env::args().skip(1) {
        let log = File::open(&path)?;
        let mut allowed = 0u64;
        let started = Instant::now();
        let scan = ingest::scan(log, |request| allowed += u64::from(request.allowed()));
        let seconds = started.elapsed().as_secs_f64();

        let mut out = io::stdout().lock();
        writeln!(out, "{path}: {} requests, {allowed} of them allowed", scan.requests)?;
        for (skip, count) in scan.skipped.iter() {
            writeln!(out, "  skipped {count} {skip}")?;
        }
        if let Some(stop) = &scan.stopped {
            writeln!(out, "  stopped: {stop}")?;
        }
        writeln!(
            out,
            "  {:.0} MB/s of text, {seconds:.2} s",
            scan.bytes as f64 / 1e6 / seconds
        )?;
    }
    Ok(())
}
