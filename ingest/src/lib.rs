//! Says what was requested: the bytes of an AWS WAF log object become [`Request`]s.
//!
//! [`scan()`] is the way in. It finds out by itself how an object is packed (plain, gzip, zstd, one in the other) and how
//! its records are framed (a line each, no delimiter at all, arrays, CloudWatch wrappers), and lends every record that
//! can be read to a callback. What cannot be read is counted by reason in a [`Scan`]: bad input is a value, and a bad
//! record costs nobody else's record. [`object_key`] says what the key of an object tells about what is inside.
//!
//! Bytes come as any [`std::io::Read`]. There is no S3, no policy and no clock in here.
//!
//! From the outside to the inside: `container` unpacks (gzip by `inflate`), `scan` cuts the text into records and finds its way back after
//! damage, `as_written` reads a record that is as WAF writes it, `record` any other, `walk` says where a damaged record ends.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod ahead;
mod as_written;
#[cfg(any(test, feature = "compare"))]
pub mod compare;
mod container;
mod inflate;
pub mod object_key;
mod record;
mod request;
mod scan;
mod walk;

pub use ahead::scan_ahead;
pub use container::Stop;
pub use request::{Header, Request, Wants};
pub use scan::{RECORD_BYTES_MAX, Scan, Skip, Skipped, scan, scan_for};

#[cfg(test)]
mod tests;
