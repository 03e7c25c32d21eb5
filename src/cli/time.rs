//! Times as people type and read them.

use analyzer::Minute;
use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};

/// Reads a time of the command line into milliseconds since the epoch; UTC unless it says otherwise.
pub(super) fn parse_ms(text: &str) -> Result<i64, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.timestamp_millis());
    }
    for format in [
        "%Y-%m-%dT%H:%M:%S",
        "%Y-%m-%dT%H:%M",
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%d %H:%M",
        "%Y-%m-%dT%H:%MZ",
    ] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, format) {
            return Ok(time.and_utc().timestamp_millis());
        }
    }
    if let Ok(day) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Ok(day
            .and_hms_opt(0, 0, 0)
            .unwrap_or_default()
            .and_utc()
            .timestamp_millis());
    }
    Err("write a time like `2026-11-01`, `2026-11-01T12:00` (UTC) or `2026-11-01T12:00:00+01:00`".to_owned())
}

/// RFC 3339 with seconds, in UTC.
pub(crate) fn rfc3339(ms: i64) -> String {
    DateTime::<Utc>::from_timestamp_millis(ms)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// For tables: `2026-11-01 12:11`, always UTC.
pub(crate) fn shown(minute: Minute) -> String {
    DateTime::<Utc>::from_timestamp(minute.epoch_seconds(), 0)
        .unwrap_or_default()
        .format("%Y-%m-%d %H:%M")
        .to_string()
}

/// The time of day alone.
pub(crate) fn clock(minute: Minute) -> String {
    DateTime::<Utc>::from_timestamp(minute.epoch_seconds(), 0)
        .unwrap_or_default()
        .format("%H:%M")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_unless_they_say_otherwise() {
        for text in [
            "2026-11-01",
            "2026-11-01T00:00",
            "2026-11-01 00:00:00",
            "2026-11-01T01:00:00+01:00",
            "2026-11-01T00:00:00Z",
        ] {
            assert_eq!(parse_ms(text).unwrap(), 1_793_491_200_000, "{text}");
        }
        assert!(parse_ms("yesterday").is_err());
    }
}
