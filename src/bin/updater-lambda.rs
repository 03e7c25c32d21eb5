//! The Lambda function that judges every minute and updates IP sets; zipped as `bootstrap` for `provided.al2023`.
//!
//! Its environment: `PALISADE_STATE` and `PALISADE_LOGS`, each a place like `s3://bucket/prefix`.

use std::process::ExitCode;

use palisade::lambda::{Updater, serve};

fn main() -> ExitCode {
    serve::<Updater>()
}
