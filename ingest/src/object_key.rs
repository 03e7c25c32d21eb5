//! Says what the key of a log object tells about the records inside, so that those out of question need not be fetched.
//!
//! Two names are AWS's own: those of WAF's delivery to S3 ([Sending logs to an S3 bucket][direct]) and of Firehose
//! ([Configure Amazon S3 object name format][firehose]). People choose the folders above Firehose's names freely ([Custom
//! prefixes for Amazon S3 objects][prefixes]), so of those we know the customary ones. A key that says nothing is no
//! error: its object has to be read.
//!
//! Times are taken as UTC. That is the default; a Firehose stream with a `CustomTimeZone` writes its own time into both
//! the folders and the name, and nothing in the key tells. Do not leave out objects of such a stream by their keys.
//!
//! [direct]: https://docs.aws.amazon.com/waf/latest/developerguide/logging-s3.html
//! [firehose]: https://docs.aws.amazon.com/firehose/latest/dev/s3-object-name.html
//! [prefixes]: https://docs.aws.amazon.com/firehose/latest/dev/s3-prefixes.html

use chrono::NaiveDate;

/// How much older than its object's time a record may be. A Firehose key names the arrival of the oldest record in the
/// object ([Custom prefixes for Amazon S3 objects][prefixes]), not the request; WAF's names the period of delivery, which
/// lags behind. Both take minutes as a rule, but both retry, and neither promises anything.
///
/// [prefixes]: https://docs.aws.amazon.com/firehose/latest/dev/s3-prefixes.html
pub const DELIVERY_LATE_SECONDS: i64 = 60 * 60;

/// How much younger than its object's time a record may be: Firehose gathers for up to 900 seconds after the first record
/// before it writes the object ([Buffering hints][hints]).
///
/// [hints]: https://docs.aws.amazon.com/firehose/latest/APIReference/API_BufferingHints.html
pub const GATHERING_SECONDS: i64 = 15 * 60;

/// WAF publishes its log files to S3 every five minutes ([Sending logs to an S3 bucket][direct]).
///
/// [direct]: https://docs.aws.amazon.com/waf/latest/developerguide/logging-s3.html
const WAF_PERIOD_SECONDS: i64 = 5 * 60;

const HOUR_SECONDS: i64 = 60 * 60;
const DAY_SECONDS: i64 = 24 * HOUR_SECONDS;

/// What the key of a log object tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectKey<'a> {
    /// The AWS account that owns the web ACL.
    pub account: Option<&'a str>,
    /// The Region, or `cloudfront`.
    pub region: Option<&'a str>,
    /// The name of the web ACL.
    pub web_acl: Option<&'a str>,
    /// The name of the Firehose stream.
    pub stream: Option<&'a str>,
    /// The period of delivery that the key names.
    pub times: Option<Times>,
}

/// The period that a key names, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Its beginning.
    pub start_s: i64,
    /// Its end, which is the beginning where the key names an instant.
    pub end_s: i64,
}

/// Reads the key of an object, or the path of a file.
pub fn parse(key: &str) -> ObjectKey<'_> {
    let (folders, name) = key.rsplit_once('/').unwrap_or(("", key));
    let folders: Vec<&str> = folders
        .split('/')
        .filter(|folder| !folder.is_empty() && *folder != ".")
        .collect();
    let by_folders = of_folders(&folders);
    let by_name = of_direct_name(name)
        .or_else(|| of_firehose_name(name))
        .unwrap_or_default();
    ObjectKey {
        account: by_name.account.or(by_folders.account),
        region: by_name.region.or(by_folders.region),
        web_acl: by_name.web_acl.or(by_folders.web_acl),
        stream: by_name.stream,
        times: by_name.times.or(by_folders.times),
    }
}

impl ObjectKey<'_> {
    /// Whether the object may hold records of the time from `from_s` up to, but not including, `to_s`.
    ///
    /// `false` is certain as far as AWS keeps to [`DELIVERY_LATE_SECONDS`] and [`GATHERING_SECONDS`], and the key to UTC.
    /// An object whose key tells no time may hold anything.
    pub fn may_hold(&self, from_s: Option<i64>, to_s: Option<i64>) -> bool {
        let Some(times) = self.times else { return true };
        let first_s = times.start_s - DELIVERY_LATE_SECONDS;
        let last_s = times.end_s + GATHERING_SECONDS;
        from_s.is_none_or(|from_s| from_s <= last_s) && to_s.is_none_or(|to_s| first_s < to_s)
    }
}

/// `<account>_waflogs_<Region>_<web ACL>_<yyyyMMddTHHmmZ>_<hash>.log.gz`. Only the web ACL may contain underscores.
fn of_direct_name(name: &str) -> Option<ObjectKey<'_>> {
    let (account, rest) = name.split_once("_waflogs_")?;
    let (region, rest) = rest.split_once('_')?;
    let (rest, _hash) = rest.rsplit_once('_')?;
    let (web_acl, time) = rest.rsplit_once('_')?;
    Some(ObjectKey {
        account: Some(account),
        region: Some(region),
        web_acl: Some(web_acl),
        stream: None,
        times: waf_period(time),
    })
}

/// The five minutes that begin at `yyyyMMddTHHmmZ`.
fn waf_period(time: &str) -> Option<Times> {
    let (date, time) = time.strip_suffix('Z')?.split_once('T')?;
    if date.len() != 8 || time.len() != 4 || !date.is_ascii() || !time.is_ascii() {
        return None;
    }
    let start_s = instant(&date[..4], &date[4..6], &date[6..], &time[..2], &time[2..], "00")?;
    Some(Times {
        start_s,
        end_s: start_s + WAF_PERIOD_SECONDS,
    })
}

/// `<stream>-<version>-yyyy-MM-dd-HH-mm-ss-<uuid>`, and perhaps a suffix. The stream may be named after a date too, so
/// the last time that fits is meant.
fn of_firehose_name(name: &str) -> Option<ObjectKey<'_>> {
    let ends: Vec<usize> = name.match_indices('-').map(|(at, _)| at).collect();
    ends.windows(8).rev().find_map(|dashes| {
        let part = |nth: usize| &name[dashes[nth] + 1..dashes[nth + 1]];
        if !is_digits(part(0), 1..=10) {
            return None;
        }
        let at_s = instant(part(1), part(2), part(3), part(4), part(5), part(6))?;
        let stream = &name[..dashes[0]];
        (!stream.is_empty()).then_some(ObjectKey {
            stream: Some(stream),
            times: Some(Times {
                start_s: at_s,
                end_s: at_s,
            }),
            ..ObjectKey::default()
        })
    })
}

fn of_folders<'a>(folders: &[&'a str]) -> ObjectKey<'a> {
    let mut read = ObjectKey::default();
    if let Some(at) = folders.iter().rposition(|folder| *folder == "WAFLogs") {
        if at >= 2 && folders[at - 2] == "AWSLogs" {
            read.account = Some(folders[at - 1]);
        }
        read.region = folders.get(at + 1).copied();
        read.web_acl = folders.get(at + 2).copied();
        if let Some([year, month, day, hour, minute, ..]) = folders.get(at + 3..) {
            let start_s = instant(year, month, day, hour, minute, "00");
            read.times = start_s.map(|start_s| Times {
                start_s,
                end_s: start_s + WAF_PERIOD_SECONDS,
            });
        }
    }
    // The deepest date counts: whatever is above it was there first, for another purpose.
    read.times = read
        .times
        .or_else(|| (0..folders.len()).rev().find_map(|at| of_dated_folders(folders, at)));
    read
}

/// The hour, or at least the day, that the folder at this place and those below it name.
fn of_dated_folders(folders: &[&str], at: usize) -> Option<Times> {
    let below = |steps: usize| folders.get(at + steps).copied().unwrap_or_default();
    let (date, hour) = match plain_date(unlabelled(folders[at], &["dt", "date", "day", "datehour"])) {
        Some((date, "")) => (date, unlabelled(below(1), HOUR_LABELS)),
        Some((date, hour)) => (date, hour),
        None => {
            let date = calendar_day(
                unlabelled(folders[at], &["year", "yyyy", "y"]),
                unlabelled(below(1), &["month", "mm", "m"]),
                unlabelled(below(2), &["day", "dd", "d"]),
            )?;
            (date, unlabelled(below(3), HOUR_LABELS))
        }
    };
    let midnight_s = date.and_hms_opt(0, 0, 0)?.and_utc().timestamp();
    Some(match two_digits(hour).filter(|hour| *hour < 24) {
        Some(hour) => {
            let start_s = midnight_s + i64::from(hour) * HOUR_SECONDS;
            Times {
                start_s,
                end_s: start_s + HOUR_SECONDS,
            }
        }
        None => Times {
            start_s: midnight_s,
            end_s: midnight_s + DAY_SECONDS,
        },
    })
}

const HOUR_LABELS: &[&str] = &["hour", "hh", "h", "hr"];

/// A folder without the `label=` of partitioned tables.
fn unlabelled<'a>(folder: &'a str, labels: &[&str]) -> &'a str {
    match folder.split_once('=') {
        Some((label, value)) if labels.iter().any(|known| label.eq_ignore_ascii_case(known)) => value,
        _ => folder,
    }
}

/// `2026-11-01`, and the hour in `2026-11-01-12` or `2026-11-01T12`.
fn plain_date(text: &str) -> Option<(NaiveDate, &str)> {
    let (date, rest) = text.split_at_checked(10)?;
    let mut parts = date.splitn(3, '-');
    let date = calendar_day(parts.next()?, parts.next()?, parts.next()?)?;
    match rest.strip_prefix(['-', 'T', '/']) {
        Some(hour) => two_digits(hour).map(|_| (date, hour)),
        None => rest.is_empty().then_some((date, "")),
    }
}

fn instant(year: &str, month: &str, day: &str, hour: &str, minute: &str, second: &str) -> Option<i64> {
    let date = calendar_day(year, month, day)?;
    let time = date.and_hms_opt(two_digits(hour)?, two_digits(minute)?, two_digits(second)?)?;
    Some(time.and_utc().timestamp())
}

fn calendar_day(year: &str, month: &str, day: &str) -> Option<NaiveDate> {
    if !is_digits(year, 4..=4) {
        return None;
    }
    NaiveDate::from_ymd_opt(year.parse().ok()?, two_digits(month)?, two_digits(day)?)
}

fn two_digits(text: &str) -> Option<u32> {
    if is_digits(text, 2..=2) {
        text.parse().ok()
    } else {
        None
    }
}

fn is_digits(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a key tells, as one line.
    fn told(key: &str) -> String {
        let key = parse(key);
        let time = |at_s| {
            chrono::DateTime::from_timestamp(at_s, 0)
                .unwrap()
                .format("%F %T")
                .to_string()
        };
        let times = key.times.map_or("-".to_owned(), |times| {
            format!("{} +{}", time(times.start_s), times.end_s - times.start_s)
        });
        [key.account, key.region, key.web_acl, key.stream]
            .map(|told| told.unwrap_or("-"))
            .join(" ")
            + " | "
            + &times
    }

    #[test]
    fn keys_tell_whose_records_of_which_time_are_inside() {
        let checks = [
            // WAF's own delivery: whole keys, below a prefix, the name alone, the folders alone.
            (
                "AWSLogs/111122223333/WAFLogs/us-east-1/api/2026/11/01/12/05/111122223333_waflogs_us-east-1_api_20261101T1205Z_1e27a176.log.gz",
                "111122223333 us-east-1 api - | 2026-11-01 12:05:00 +300",
            ),
            (
                "logs/waf/AWSLogs/111122223333/WAFLogs/cloudfront/shop_v2_eu/2026/11/01/12/05/111122223333_waflogs_cloudfront_shop_v2_eu_20261101T1205Z_1e27a176.log.gz",
                "111122223333 cloudfront shop_v2_eu - | 2026-11-01 12:05:00 +300",
            ),
            (
                "./111122223333_waflogs_eu-west-1_a_b__c_20261101T2355Z_1e27a176.log",
                "111122223333 eu-west-1 a_b__c - | 2026-11-01 23:55:00 +300",
            ),
            (
                "/var/logs/AWSLogs/111122223333/WAFLogs/us-east-1/api/2026/11/01/12/05/renamed.gz",
                "111122223333 us-east-1 api - | 2026-11-01 12:05:00 +300",
            ),
            (
                "AWSLogs/111122223333/WAFLogs/us-east-1/api/2026/11/01/12/05/111122223333_waflogs_us-east-1_api_20261301T1205Z_1e27a176.log.gz",
                "111122223333 us-east-1 api - | 2026-11-01 12:05:00 +300",
            ),
            // Firehose: with and without folders, suffix or a date in the name of the stream.
            (
                "2026/11/01/12/aws-waf-logs-api-1-2026-11-01-12-34-56-8b1c5f0a-1111-4222-8333-123456789012",
                "- - - aws-waf-logs-api | 2026-11-01 12:34:56 +0",
            ),
            (
                "aws-waf-logs-2025-01-01-00-00-00-x-12-2026-11-01-12-34-56-8b1c5f0a-1111-4222-8333-123456789012.gz",
                "- - - aws-waf-logs-2025-01-01-00-00-00-x | 2026-11-01 12:34:56 +0",
            ),
            // A Firehose name that is none: the folder still counts.
            (
                "waf/2026/11/01/12/aws-waf-logs-api-1-2026-11-31-12-34-56-8b1c5f0a-1111.gz",
                "- - - - | 2026-11-01 12:00:00 +3600",
            ),
            // Folders only.
            ("waf/2026/11/01/12/part-0", "- - - - | 2026-11-01 12:00:00 +3600"),
            ("2026/11/01/part-0", "- - - - | 2026-11-01 00:00:00 +86400"),
            (
                "year=2026/month=11/day=01/hour=12/x.gz",
                "- - - - | 2026-11-01 12:00:00 +3600",
            ),
            (
                "waf/year=2026/month=11/day=01/x.gz",
                "- - - - | 2026-11-01 00:00:00 +86400",
            ),
            ("dt=2026-11-01/x.gz", "- - - - | 2026-11-01 00:00:00 +86400"),
            ("date=2026-11-01/hour=12/x.gz", "- - - - | 2026-11-01 12:00:00 +3600"),
            ("2026-11-01-12/x.gz", "- - - - | 2026-11-01 12:00:00 +3600"),
            ("dt=2026-11-01-12/x.gz", "- - - - | 2026-11-01 12:00:00 +3600"),
            (
                "exported/2020/01/01/logs/2026/11/01/12/x",
                "- - - - | 2026-11-01 12:00:00 +3600",
            ),
            ("a/2026/11/01/24/x", "- - - - | 2026-11-01 00:00:00 +86400"),
            // Nothing.
            ("", "- - - - | -"),
            ("/", "- - - - | -"),
            ("waf.log", "- - - - | -"),
            ("2026/13/01/12/x", "- - - - | -"),
            ("waf/2026/11/x", "- - - - | -"),
            ("ünïcödé/２０２６/11/01/12/x_waflogs_y_z_20é61101T12Z_h", "x y z - | -"),
        ];
        for (key, expected) in checks {
            assert_eq!(told(key), expected, "{key}");
        }
    }

    #[test]
    fn an_object_is_left_out_only_if_nothing_in_it_can_be_meant() {
        let noon_s = 1_793_534_400; // 2026-11-01 12:00:00
        let of_name = parse("aws-waf-logs-api-1-2026-11-01-12-00-00-8b1c5f0a-1111-4222-8333-123456789012");
        assert_eq!(
            of_name.times,
            Some(Times {
                start_s: noon_s,
                end_s: noon_s
            })
        );

        assert!(of_name.may_hold(None, None));
        assert!(of_name.may_hold(Some(noon_s), Some(noon_s + 1)));
        // Gathered for up to a quarter of an hour.
        assert!(of_name.may_hold(Some(noon_s + 900), None));
        assert!(!of_name.may_hold(Some(noon_s + 901), None));
        // Delivered up to an hour late; the end is not included.
        assert!(of_name.may_hold(None, Some(noon_s - 3599)));
        assert!(!of_name.may_hold(None, Some(noon_s - 3600)));

        let of_hour = parse("2026/11/01/12/x");
        assert!(of_hour.may_hold(Some(noon_s + 3600 + 900), None));
        assert!(!of_hour.may_hold(Some(noon_s + 3600 + 901), None));

        assert!(parse("x.log").may_hold(Some(0), Some(1)));
    }
}
