//! Shows how far the reading is, on a terminal and nowhere else.

use std::io::{IsTerminal, stderr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{Printer, count};
use crate::inputs::Inputs;
use crate::replay::Progress;

/// A bar over the bytes as stored, with the objects, the records and their rate.
pub(super) struct Bar {
    bar: ProgressBar,
    objects: AtomicU64,
    total: usize,
    requests: AtomicU64,
}

/// The bar on the screen, for whoever must take it away.
static SHOWN: OnceLock<ProgressBar> = OnceLock::new();

impl Bar {
    pub(super) fn start(printer: &Printer, inputs: &Inputs) -> Bar {
        let bytes = inputs.objects.iter().map(|object| object.size()).sum();
        let bar = if printer.quiet() || !stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(bytes)
        };
        if !bar.is_hidden() {
            let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}  {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(std::time::Duration::from_millis(200));
            // The first bar of a process decides what Ctrl-C does: take the bar away and leave, as a terminal expects.
            if SHOWN.set(bar.clone()).is_ok() {
                let _ = ctrlc::set_handler(|| {
                    if let Some(bar) = SHOWN.get() {
                        bar.finish_and_clear();
                    }
                    std::process::exit(130);
                });
            }
        }
        Bar {
            bar,
            objects: AtomicU64::new(0),
            total: inputs.objects.len(),
            requests: AtomicU64::new(0),
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn object(&self, bytes: u64, requests: u64) {
        let objects = self.objects.fetch_add(1, Ordering::Relaxed) + 1;
        let requests = self.requests.fetch_add(requests, Ordering::Relaxed) + requests;
        if self.bar.is_hidden() {
            return;
        }
        self.bar.inc(bytes);
        let rate = requests as f64 / self.bar.elapsed().as_secs_f64().max(0.001);
        self.bar.set_message(format!(
            "{objects}/{} objects, {} records, {}/s",
            self.total,
            count(requests),
            count(rate as u64)
        ));
    }
}
