//! The long comparison of the two readers of records.

use std::time::{Duration, Instant};

use ingest::compare::{Logs, disagreement, read_as_written};

/// Compares on logs from `seed` on until so many records were read by both or time is up. Gives how many were read, and the
/// first disagreement.
pub(crate) fn run(seed: u64, records: u64, time: Duration, progress: impl Fn(u64, u64)) -> (u64, Option<String>) {
    let began = Instant::now();
    let (mut read, mut as_written, mut told) = (0, 0, 0);
    for seed in seed.. {
        let mut logs = Logs::new(seed);
        for number in 0..1000u64 {
            let wants = logs.wants();
            let buffer_bytes = [64 * 1024, 512, 1500, 64 * 1024][number as usize % 4];
            let log = logs.next_log(50);
            read += 50;
            if number % 100 == 0 {
                as_written += read_as_written(log) as u64 * 100;
            }
            if let Some(disagreement) = disagreement(log, &wants, buffer_bytes) {
                return (
                    read,
                    Some(format!("seed {seed}, log {number}, {wants:?}:\n{disagreement}")),
                );
            }
        }
        if read >= told + 1_000_000 {
            told = read;
            progress(read, as_written);
        }
        if read >= records || began.elapsed() > time {
            break;
        }
    }
    progress(read, as_written);
    (read, None)
}
