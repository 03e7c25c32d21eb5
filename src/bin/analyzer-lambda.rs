//! The Lambda function that counts log objects as they are delivered; zipped as `bootstrap` for `provided.al2023`.
//!
//! Its environment: `PALISADE_STATE` and `PALISADE_LOGS`, each a place like `s3://bucket/prefix`.

use std::process::ExitCode;

use palisade::lambda::{Analyzer, serve};

fn main() -> ExitCode {
    serve::<Analyzer>()
}
