//! Minutes and spans: the only units of time a judgment knows.
//!
//! Log objects arrive minutes late and IP sets take effect within minutes, so finer time would only pretend.

use std::fmt;
use std::ops::{Add, Sub};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, de};

/// A minute since 1970-01-01T00:00Z. Arithmetic saturates at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Minute(pub u32);

impl Minute {
    /// The minute that holds `timestamp_ms`, milliseconds since the epoch; times before the epoch are minute 0.
    pub fn of_ms(timestamp_ms: i64) -> Minute {
        Minute(u32::try_from(timestamp_ms.max(0) / 60_000).unwrap_or(u32::MAX))
    }

    /// Seconds since the epoch at which the minute begins.
    pub fn epoch_seconds(self) -> i64 {
        i64::from(self.0) * 60
    }

    /// Minutes from `earlier` until this one; zero if it is not earlier.
    pub fn since(self, earlier: Minute) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Span> for Minute {
    type Output = Minute;
    fn add(self, span: Span) -> Minute {
        Minute(self.0.saturating_add(span.0))
    }
}

impl Sub<Span> for Minute {
    type Output = Minute;
    fn sub(self, span: Span) -> Minute {
        Minute(self.0.saturating_sub(span.0))
    }
}

/// RFC 3339 in UTC with seconds, `2026-11-01T12:11:00Z`.
impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::<Utc>::from_timestamp(self.epoch_seconds(), 0).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}

/// A number of minutes, at least one wherever a policy names it. Written `90m`, `6h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub u32);

impl Span {
    /// One minute.
    pub const MINUTE: Span = Span(1);
    /// The longest span a policy may name: a year. Longer ones are typing mistakes.
    pub const MAX: Span = Span(366 * 24 * 60);

    /// Reads `15m`, `6h` or `7d`.
    ///
    /// # Errors
    /// A sentence fragment for anything else: no unit, seconds, zero, longer than [`Span::MAX`].
    pub fn parse(text: &str) -> Result<Span, String> {
        let bad = || format!("`{text}` is not a time span; write whole minutes, hours or days like `15m`, `6h`, `7d`");
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(unit_at);
        let minutes_per_unit: u32 = match unit {
            "m" | "min" => 1,
            "h" => 60,
            "d" => 24 * 60,
            "w" => 7 * 24 * 60,
            _ => return Err(bad()),
        };
        let number: u32 = number.parse().map_err(|_| bad())?;
        match number.checked_mul(minutes_per_unit).map(Span) {
            Some(Span(0)) => Err(format!("`{text}` is no time at all; the shortest span is `1m`")),
            Some(span) if span <= Span::MAX => Ok(span),
            _ => Err(format!("`{text}` is longer than a year")),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            m if m % (24 * 60) == 0 && m >= 48 * 60 => write!(f, "{}d", m / (24 * 60)),
            m if m % 60 == 0 && m > 0 => write!(f, "{}h", m / 60),
            m => write!(f, "{m}m"),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        Span::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written_in_the_operators_units() {
        for (text, minutes, shown) in [
            ("1m", 1, "1m"),
            ("15m", 15, "15m"),
            ("60m", 60, "1h"),
            ("90m", 90, "90m"),
            ("24h", 1440, "24h"),
            ("7d", 10080, "7d"),
            ("1w", 10080, "7d"),
        ] {
            let span = Span::parse(text).unwrap();
            assert_eq!((span.0, span.to_string().as_str()), (minutes, shown));
        }
        for text in ["", "5", "m", "0m", "30s", "-5m", "1.5h", "99999999999m", "400d", "5 m"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_minute_is_shown_in_utc() {
        assert_eq!(Minute::of_ms(1_793_535_119_999).to_string(), "2026-11-01T12:11:00Z");
        assert_eq!(Minute::of_ms(-5), Minute(0));
    }
}
