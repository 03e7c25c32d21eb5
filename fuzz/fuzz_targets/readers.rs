//! Both readers of records must read the same in anything: `cargo +nightly fuzz run readers`.

#![no_main]

use ingest::Wants;
use ingest::compare::disagreement;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    for wants in [Wants::everything(), Wants::nothing().and_header("host")] {
        if let Some(disagreement) = disagreement(log, &wants, 4096) {
            panic!("{disagreement}");
        }
    }
});
