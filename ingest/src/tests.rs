//! Everything an object of WAF logs may look like.
//!
//! Texts are in `fixtures/`, named after the situation, with what is to be read from them beside it in `.expected`:
//! `UPDATE_FIXTURES=1 cargo test -p ingest` writes that anew, for you to look at in the diff. What is packed is packed
//! here, from those texts.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use crate::as_written;
use crate::compare::{self, Logs};
use crate::inflate::Gunzip;
use crate::scan::{Reader, scan_with};
use crate::{RECORD_BYTES_MAX, Request, Scan, Skip, Skipped, Stop, Wants, scan, scan_ahead, scan_for};

// What was read, in words.

fn line(request: &Request<'_>) -> String {
    let mut line = format!(
        "{} {} {} {} {} {} {:?}",
        request.timestamp_ms,
        request.client_ip,
        or_dash(request.country.as_deref()),
        or_dash(Some(&request.action)),
        or_dash(Some(&request.waf_rule)),
        or_dash(Some(&request.method)),
        request.uri,
    );
    if !request.args.is_empty() {
        let _ = write!(line, " args {:?}", request.args);
    }
    let _ = write!(line, " host {}", or_dash(request.host.as_deref()));
    let _ = write!(line, " acl {}", or_dash(request.web_acl.rsplit(':').next()));
    let optional = [
        ("ja3", &request.ja3),
        ("ja4", &request.ja4),
        ("id", &request.request_id),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    for (name, value) in optional {
        let _ = write!(line, " {name} {value}");
    }
    if let Some(code) = request.response_code {
        let _ = write!(line, " code {code}");
    }
    for label in &request.labels {
        let _ = write!(line, "\n    label {label}");
    }
    for header in &request.headers {
        let _ = write!(line, "\n    {:?}: {:?}", header.name, header.value);
    }
    line
}

fn or_dash(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("-")
}

fn reading(log: &[u8]) -> String {
    let (requests, scan) = read(log);
    assert_eq!(requests.len() as u64, scan.requests);
    assert!(scan.bytes == log.len() as u64, "{} bytes of {}", scan.bytes, log.len());
    let mut reading = requests
        .iter()
        .map(|request| request.clone() + "\n")
        .collect::<String>();
    for (skip, count) in scan.skipped.iter() {
        let _ = writeln!(reading, "skipped {count} {skip}");
    }
    if let Some(stop) = scan.stopped {
        let _ = writeln!(reading, "stopped: {stop}");
    }
    reading
}

fn read(log: impl Read) -> (Vec<String>, Scan) {
    let mut requests = Vec::new();
    let scan = scan(log, |request| requests.push(line(request)));
    (requests, scan)
}

fn skipped(skips: &[Skip]) -> Skipped {
    let mut skipped = Skipped::default();
    skips.iter().for_each(|skip| skipped.add(*skip));
    skipped
}

// The fixtures.

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension != "expected"))
        .collect();
    paths.sort();
    assert!(paths.len() > 70, "where are the fixtures?");
    paths
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)).unwrap()
}

#[test]
fn fixtures_are_read_as_expected() {
    let update = std::env::var_os("UPDATE_FIXTURES").is_some();
    let mut wrong = String::new();
    for path in fixtures() {
        let reading = reading(&fs::read(&path).unwrap());
        let expected_path = path.with_extension("expected");
        if update {
            fs::write(expected_path, reading).unwrap();
            continue;
        }
        let expected = fs::read_to_string(expected_path).unwrap_or_default();
        if reading != expected {
            let _ = writeln!(
                wrong,
                "== {}\n-- expected\n{expected}-- but read\n{reading}",
                path.display()
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_reading_does_not_depend_on_how_the_bytes_arrive() {
    for path in fixtures() {
        let log = fs::read(&path).unwrap();
        let whole = read(&log[..]);
        for step in [1, 2, 7, 4096] {
            assert_eq!(
                read(InSteps { log: &log, step }),
                whole,
                "{} in steps of {step}",
                path.display()
            );
        }
        let packed = gzip(&log);
        for step in [1, 2, 7, 4096] {
            assert_eq!(
                read(InSteps { log: &packed, step }),
                whole,
                "{} packed, in steps of {step}",
                path.display()
            );
        }
    }
}

#[test]
fn a_reading_does_not_depend_on_where_the_buffer_ends() {
    for path in fixtures()
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension != "bin"))
    {
        let log = fs::read(path).unwrap();
        let whole = read(&log[..]);
        for buffer_bytes in (256..700).step_by(37).chain([1000, 1500, 3001]) {
            let mut requests = Vec::new();
            let scan = scan_with(buffer_bytes, Reader::Fast, &log[..], &Wants::everything(), |request| {
                requests.push(line(request));
            });
            assert_eq!(
                (requests, scan),
                whole,
                "{} with a buffer of {buffer_bytes}",
                path.display()
            );
        }
    }
}

#[test]
fn an_end_is_an_end_also_where_the_buffer_ends() {
    // Found by the long comparison of the two readers: a cut record, and what may be the beginning of another.
    let lines = fixture("lines.ndjson");
    let record = &lines[..lines.iter().position(|byte| *byte == b'\n').unwrap()];
    for cut in 1..record.len() {
        for end in ["", "\n", "\n{", "\n{\"ti", "\r\n{\"timestamp\":", " {\"a\":1}"] {
            let log = [&lines[..], &record[..cut], end.as_bytes()].concat();
            let whole = read(&log[..]).1;
            for reader in [Reader::Fast, Reader::Tolerant] {
                let scan = scan_with(log.len(), reader, &log[..], &Wants::everything(), |_| ());
                assert_eq!(scan, whole, "{}", log.escape_ascii());
            }
        }
    }
}

#[test]
fn unpacked_ahead_everything_reads_alike() {
    for path in fixtures() {
        let plain = fs::read(&path).unwrap();
        let packed = gzip(&plain);
        let half = packed.len() / 2;
        let mut damaged = packed.clone();
        damaged[half..half + 4].iter_mut().for_each(|byte| *byte ^= 0x55);
        let many = gzip(&plain.repeat(1 + 300_000 / plain.len().max(1)));
        let logs = [
            &plain,
            &packed,
            &packed[..half],
            &damaged,
            &gzip(&packed),
            &many,
            b"PK\x03\x04 a zip",
        ];
        for (number, log) in logs.into_iter().enumerate() {
            let failing = || Failing {
                log,
                interrupted: false,
                error: io::ErrorKind::ConnectionReset,
            };
            let mut requests = Vec::new();
            let scan = scan_ahead(log, &Wants::everything(), |request| requests.push(line(request)));
            assert_eq!((requests, scan), read(log), "{}, {number}", path.display());
            let mut requests = Vec::new();
            let scan = scan_ahead(failing(), &Wants::everything(), |request| requests.push(line(request)));
            assert_eq!(
                (requests, scan),
                read(failing()),
                "{}, {number}, failing",
                path.display()
            );
        }
    }
}

#[test]
fn cut_anywhere_a_record_costs_only_itself() {
    let lines = fixture("lines.ndjson");
    let lines: Vec<&[u8]> = lines.split_inclusive(|byte| *byte == b'\n').collect();
    let (first, second, third) = (lines[0], lines[1], lines[2]);
    let good = |records: &[&[u8]]| read(&records.concat()[..]).0;
    for cut in 1..second.len() - 1 {
        let log = [first, &second[..cut], b"\n", third].concat();
        let (requests, scan) = read(&log[..]);
        assert_eq!(requests, good(&[first, third]), "{}", String::from_utf8_lossy(&log));
        assert_eq!(
            scan.skipped,
            skipped(&[Skip::Truncated]),
            "{}",
            String::from_utf8_lossy(&log)
        );

        let log = [first.trim_ascii_end(), &second[..cut], third].concat();
        let (requests, scan) = read(&log[..]);
        assert_eq!(requests, good(&[first, third]), "{}", String::from_utf8_lossy(&log));
        assert_eq!(scan.skipped.total(), 1, "{}", String::from_utf8_lossy(&log));

        let log = [first, third, &second[..cut]].concat();
        let (requests, scan) = read(&log[..]);
        assert_eq!(requests, good(&[first, third]));
        assert_eq!(scan.skipped, skipped(&[Skip::Truncated]));
    }
}

#[test]
fn without_its_beginning_a_record_costs_only_itself() {
    let lines = fixture("lines.ndjson");
    let lines: Vec<&[u8]> = lines.split_inclusive(|byte| *byte == b'\n').collect();
    for cut in 1..lines[0].len() - 1 {
        for rest in [&lines[0][cut..], lines[0][cut..].trim_ascii_end()] {
            let log = [rest, lines[1], lines[2]].concat();
            let (requests, _) = read(&log[..]);
            assert_eq!(
                requests,
                read(&lines[1..].concat()[..]).0,
                "{}",
                String::from_utf8_lossy(&log)
            );
        }
    }
}

#[test]
fn a_scan_can_be_read_aloud() {
    let mut met = skipped(&[Skip::NotJson, Skip::Truncated, Skip::NotJson]);
    met += skipped(&[Skip::Truncated]);
    assert_eq!(met.total(), 4);
    assert_eq!(met.get(Skip::NotJson), 2);
    assert_eq!(
        met.iter().collect::<Vec<_>>(),
        [(Skip::Truncated, 2), (Skip::NotJson, 2)]
    );
    let names: Vec<&str> = Skip::ALL.into_iter().map(Skip::name).collect();
    assert_eq!(
        names,
        [
            "malformed",
            "truncated",
            "not-waf",
            "no-timestamp",
            "no-client-ip",
            "too-long",
            "not-json"
        ]
    );
    assert_eq!(Skip::NotWaf.to_string(), "not-waf");
    assert_eq!(scan(io::empty(), |_| ()), Scan::default());
}

#[test]
fn headers_are_found_without_case_and_all_of_them() {
    let log = fixture("headers.ndjson");
    let mut found = Vec::new();
    scan(&log[..], |request| {
        let cookies: Vec<String> = request.header("COOKIE").map(str::to_owned).collect();
        found.push((cookies, request.user_agent().map(str::to_owned), request.allowed()));
    });
    let expected = [
        (vec!["a=1".to_owned(), "b=2".to_owned()], None, true),
        (vec![], Some("yes".to_owned()), true),
        (vec![], None, true),
    ];
    assert_eq!(found, expected);
    for (action, allowed) in [
        ("ALLOW", true),
        ("allow", true),
        ("BLOCK", false),
        ("", false),
        ("ALLOWED", false),
    ] {
        assert_eq!(
            Request {
                action: action.into(),
                ..Request::default()
            }
            .allowed(),
            allowed,
            "{action}"
        );
    }
}

#[test]
fn plain_strings_are_lent_not_copied() {
    let log = fixture("rich.ndjson");
    scan(&log[..], |request| {
        let texts = [
            &request.web_acl,
            &request.action,
            &request.waf_rule,
            &request.method,
            &request.uri,
            &request.args,
        ];
        let named = request.headers.iter().flat_map(|header| [&header.name, &header.value]);
        for text in texts
            .into_iter()
            .chain(named)
            .chain(&request.labels)
            .chain(&request.host)
            .chain(&request.ja4)
        {
            assert!(matches!(text, std::borrow::Cow::Borrowed(_)), "{text}");
        }
    });
}

// What is packed.

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    zstd::encode_all(text, 1).unwrap()
}

/// Enough different lines that a part of their packed form is a part of the lines.
fn many_lines(count: usize) -> Vec<u8> {
    let mut random = 1u64;
    let mut text = Vec::new();
    for number in 0..count {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let _ = writeln!(
            text,
            r#"{{"timestamp":{},"webaclId":"a","action":"ALLOW","httpRequest":{{"clientIp":"192.0.2.{}","uri":"/{random:x}","args":"{:x}"}}}}"#,
            1_793_534_400_000u64 + number as u64,
            number % 256,
            random.wrapping_mul(random | 1),
        );
    }
    text
}

#[test]
fn objects_are_read_however_they_are_packed() {
    let text = fixture("lines.ndjson");
    let plain = read(&text[..]);
    let (first, rest) = text.split_at(400);
    let packed = [
        ("gzip", gzip(&text)),
        (
            "gzip in members, which need not end where records do",
            [gzip(first), gzip(rest)].concat(),
        ),
        (
            "gzip with an empty member",
            [gzip(b""), gzip(&text), gzip(b"")].concat(),
        ),
        ("gzip and zeros", [gzip(&text), vec![0; 5000]].concat()),
        (
            "gzip, zeros, and gzip",
            [gzip(first), vec![0; 700], gzip(rest)].concat(),
        ),
        ("zstd", zstd(&text)),
        ("zstd in frames", [zstd(first), zstd(rest)].concat()),
        (
            "zstd with a frame to skip",
            [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], &zstd(&text)[..]].concat(),
        ),
        ("gzip, then zstd", [gzip(first), zstd(rest)].concat()),
        ("gzip twice", gzip(&gzip(&text))),
        (
            "gzip of members, as Firehose packs a subscription",
            gzip(&[gzip(first), gzip(rest)].concat()),
        ),
        ("gzip three times", gzip(&gzip(&gzip(&text)))),
        ("zstd in gzip", gzip(&zstd(&text))),
    ];
    for (name, packed) in packed {
        assert_eq!(read(&packed[..]), plain, "{name}");
        assert_eq!(read(InSteps { log: &packed, step: 1 }), plain, "{name}, byte by byte");
    }
    let (requests, empty) = read(&gzip(b"")[..]);
    assert_eq!((requests.len(), empty), (0, Scan::default()));
}

#[test]
fn what_comes_before_a_cut_counts() {
    let text = many_lines(5000);
    for packed in [gzip(&text), zstd(&text), gzip(&gzip(&text))] {
        let mut read_before = 0;
        for tenth in 1..10 {
            let (requests, scan) = read(&packed[..packed.len() * tenth / 10]);
            assert_eq!(scan.stopped, Some(Stop::CutShort));
            assert!(scan.requests >= read_before && scan.requests < 5000);
            assert!(scan.skipped.total() <= 1 && scan.skipped.total() == scan.skipped.get(Skip::Truncated));
            let complete = &text[..scan.bytes as usize];
            let complete = &complete[..complete.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)];
            assert!(requests.len() as u64 - read(complete).1.requests <= 1);
            read_before = scan.requests;
        }
        assert!(read_before > 3000);
    }
    // In the header, and just before the end.
    for length in [2, 3, 9, 11] {
        assert_eq!(read(&gzip(&text)[..length]).1.stopped, Some(Stop::CutShort), "{length}");
    }
    let packed = gzip(&text);
    let (_, scan) = read(&packed[..packed.len() - 1]);
    assert_eq!(
        (scan.requests, scan.skipped.total(), scan.stopped),
        (5000, 0, Some(Stop::CutShort))
    );
}

#[test]
fn what_comes_before_damage_counts() {
    let text = fixture("lines.ndjson");
    let (_, scan) = read(&[gzip(&text), b"Hello".to_vec()].concat()[..]);
    assert_eq!(scan.requests, 3);
    assert!(matches!(scan.stopped, Some(Stop::Corrupt { .. })), "{:?}", scan.stopped);

    for (packed, named) in [(gzip(&many_lines(5000)), "gzip"), (zstd(&many_lines(5000)), "zstd")] {
        let mut packed = packed;
        let middle = packed.len() / 2;
        packed[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
        let (_, scan) = read(&packed[..]);
        assert!(scan.requests > 500 && scan.requests < 5000, "{named} {}", scan.requests);
        assert!(
            matches!(scan.stopped, Some(Stop::Corrupt { format, .. }) if format == named),
            "{:?}",
            scan.stopped
        );
    }

    // Only the checksum tells: the text is all there, but who knows what it was.
    let mut packed = gzip(&text);
    let crc = packed.len() - 8;
    packed[crc] ^= 1;
    let (_, scan) = read(&packed[..]);
    assert_eq!(scan.requests, 3);
    assert!(
        matches!(scan.stopped, Some(Stop::Corrupt { format: "gzip", .. })),
        "{:?}",
        scan.stopped
    );
}

#[test]
fn other_formats_are_told_by_name() {
    let heads: [(&[u8], &str); 8] = [
        (b"PK\x03\x04\x14\0", "a zip archive"),
        (b"PK\x05\x06\0\0", "a zip archive"),
        (b"\xff\x06\0\0sNaPpY\x01", "snappy data"),
        (b"\x82SNAPPY\0\0\0\0\x01", "snappy data"),
        (b"PAR1\x15\x04", "a parquet file"),
        (b"\x04\x22\x4d\x18\x64", "lz4 data"),
        (b"BZh91AY&SY", "bzip2 data"),
        (b"\xfd7zXZ\0\0\x04", "xz data"),
    ];
    for (head, what) in heads {
        let expected = Scan {
            stopped: Some(Stop::Unsupported { what }),
            ..Scan::default()
        };
        assert_eq!(scan(head, |_| ()), expected);
        assert_eq!(scan(&gzip(head)[..], |_| ()), expected);
    }
    let four_times = gzip(&gzip(&gzip(&gzip(b"x"))));
    assert_eq!(
        scan(&four_times[..], |_| ()).stopped.unwrap().to_string(),
        "this is compressed more than three times over: Palisade reads plain text, gzip and zstd"
    );
    assert_eq!(
        scan(&b"BZh9 is how this text begins"[..], |_| ()).skipped,
        skipped(&[Skip::NotJson])
    );
}

#[test]
fn stops_are_fragments() {
    let io = Stop::Io {
        kind: io::ErrorKind::TimedOut,
        message: "no answer".to_owned(),
    };
    let corrupt = Stop::Corrupt {
        format: "gzip",
        message: "bad block".to_owned(),
    };
    for stop in [
        Stop::CutShort,
        Stop::Binary,
        Stop::Unsupported { what: "a zip archive" },
        io,
        corrupt,
    ] {
        let text = stop.to_string();
        assert!(text.starts_with(char::is_lowercase) && !text.ends_with('.'), "{text}");
    }
}

#[test]
fn a_binary_blob_is_given_up_early() {
    let mut random = 7u64;
    let blob: Vec<u8> = std::iter::repeat_with(|| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 56) as u8
    })
    .take(8 << 20)
    .collect();
    let (_, scan) = read(&blob[..]);
    assert_eq!(
        (scan.requests, scan.skipped.total(), scan.stopped),
        (0, 0, Some(Stop::Binary))
    );
    assert!(scan.bytes < 3 << 20);

    let (_, scan) = read(&vec![0; 4 << 20][..]);
    assert_eq!(
        (scan.requests, scan.skipped.total(), scan.stopped),
        (0, 0, Some(Stop::Binary))
    );

    // Unless there is a record in it.
    let (requests, scan) = read(&[&blob[..100_000], b"\n", &fixture("lines.ndjson"), &blob[..100_000]].concat()[..]);
    assert_eq!((requests.len(), scan.stopped), (3, None));
}

// How the bytes arrive.

/// Gives so many bytes at a time.
struct InSteps<'a> {
    log: &'a [u8],
    step: usize,
}

impl Read for InSteps<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.step.min(buffer.len());
        self.log.read(&mut buffer[..length])
    }
}

/// Is interrupted before each read, and fails for good after so many bytes.
struct Failing<'a> {
    log: &'a [u8],
    interrupted: bool,
    error: io::ErrorKind,
}

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match self.log.read(buffer)? {
            0 => Err(self.error.into()),
            read => Ok(read),
        }
    }
}

#[test]
fn what_comes_before_the_reader_fails_counts() {
    let text = fixture("lines.ndjson");
    // A connection that ends early is not an object that was written only in part.
    for error in [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof] {
        let (_, scan) = read(Failing {
            log: &text,
            interrupted: false,
            error,
        });
        assert_eq!(scan.requests, 3);
        assert!(
            matches!(scan.stopped, Some(Stop::Io { kind, .. }) if kind == error),
            "{:?}",
            scan.stopped
        );

        let packed = gzip(&many_lines(5000));
        let (_, scan) = read(Failing {
            log: &packed[..packed.len() / 2],
            interrupted: false,
            error,
        });
        assert!(scan.requests > 1000);
        assert!(
            matches!(scan.stopped, Some(Stop::Io { kind, .. }) if kind == error),
            "{:?}",
            scan.stopped
        );

        let (_, scan) = read(Failing {
            log: &text[..3],
            interrupted: false,
            error,
        });
        assert_eq!(scan.skipped, skipped(&[Skip::Truncated]));
        assert!(
            matches!(scan.stopped, Some(Stop::Io { kind, .. }) if kind == error),
            "{:?}",
            scan.stopped
        );
    }
}

// Length.

/// A good record whose `args` make it this long.
fn record_of(bytes: usize) -> Vec<u8> {
    let (head, tail) = (
        r#"{"timestamp":1793534400000,"httpRequest":{"clientIp":"192.0.2.1","args":""#,
        r#""}}"#,
    );
    let mut record = head.as_bytes().to_vec();
    record.resize(bytes - tail.len(), b'x');
    record.extend_from_slice(tail.as_bytes());
    record
}

#[test]
fn a_record_may_be_as_long_as_the_limit_and_no_longer() {
    let good = record_of(100);
    let fits = [&good[..], b"\n", &record_of(RECORD_BYTES_MAX), b"\n", &good].concat();
    let (requests, scan) = read(&fits[..]);
    assert_eq!((requests.len(), scan.skipped.total()), (3, 0));

    for beyond in [1, 500, 1025, 5_000_000] {
        let too_long = record_of(RECORD_BYTES_MAX + beyond);
        for between in ["\n", ""] {
            let log = [&good, between.as_bytes(), &too_long, between.as_bytes(), &good].concat();
            let (requests, scan) = read(&log[..]);
            assert_eq!(
                (requests.len(), scan.skipped),
                (2, skipped(&[Skip::TooLong])),
                "{beyond} bytes beyond"
            );
        }
        // The long record is cut, and the next line is not.
        let log = [&too_long[..too_long.len() - 10], b"\n", &good].concat();
        let (requests, scan) = read(&log[..]);
        assert_eq!((requests.len(), scan.skipped.total()), (1, 1), "{beyond} bytes beyond");
    }
    let log = [
        &good[..],
        b"\n",
        &record_of(RECORD_BYTES_MAX * 2)[..RECORD_BYTES_MAX + RECORD_BYTES_MAX / 2],
    ]
    .concat();
    assert_eq!(read(&log[..]).1.skipped, skipped(&[Skip::TooLong]));
}

#[test]
fn a_line_of_text_may_be_of_any_length() {
    let text = vec![b'x'; RECORD_BYTES_MAX * 2];
    let log = [&text, &b"\n"[..], &record_of(100), b"\n", &text].concat();
    let (requests, scan) = read(&log[..]);
    assert_eq!(
        (requests.len(), scan.skipped),
        (1, skipped(&[Skip::NotJson, Skip::NotJson]))
    );
}

#[test]
fn an_export_of_a_whole_log_group_is_read_event_by_event() {
    let record = serde_json::to_string(&String::from_utf8(record_of(2000)).unwrap()).unwrap();
    let mut export = "{\n    \"events\": [\n".to_owned();
    let count = 2 * RECORD_BYTES_MAX / 2000;
    for number in 0..count {
        let comma = if number == 0 { "" } else { "        ,\n" };
        let _ = write!(
            export,
            "{comma}        {{\n            \"logStreamName\": \"x\",\n            \"message\": {record}\n        }}\n"
        );
    }
    export += "    ],\n    \"searchedLogStreams\": [],\n    \"nextToken\": \"x\"\n}\n{\"hello\":1}\n";
    let (requests, scan) = read(export.as_bytes());
    assert_eq!((requests.len(), scan.skipped), (count, skipped(&[Skip::NotWaf])));
}

/// Repeats a block, and remembers the longest piece it was ever asked for: the scanner's buffer, and nothing else, asks.
struct Endless<'a> {
    block: &'a [u8],
    at: usize,
    left: u64,
    asked_max: usize,
}

impl Read for &mut Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.asked_max = self.asked_max.max(buffer.len());
        let length = buffer.len().min(self.block.len() - self.at).min(self.left as usize);
        buffer[..length].copy_from_slice(&self.block[self.at..self.at + length]);
        self.at = (self.at + length) % self.block.len();
        self.left -= length as u64;
        Ok(length)
    }
}

#[test]
fn memory_stays_flat_whatever_the_size_of_the_object() {
    let lines = many_lines(5000);
    let without_newlines: Vec<u8> = lines.iter().copied().filter(|byte| *byte != b'\n').collect();
    for block in [&lines, &without_newlines] {
        let mut log = Endless {
            block,
            at: 0,
            left: 200 * block.len() as u64,
            asked_max: 0,
        };
        let scan = scan(&mut log, |_| ());
        assert_eq!((scan.requests, scan.bytes), (1_000_000, 200 * block.len() as u64));
        assert!(log.asked_max <= 256 * 1024, "a buffer of {}", log.asked_max);
    }
    // One "record" of 200 MB.
    let mut log = Endless {
        block: &[b'['; 4096],
        at: 0,
        left: 0,
        asked_max: 0,
    };
    let mut log = io::Read::chain(&b"{\"timestamp\":\""[..], {
        log.block = &[b'x'; 4096];
        log.left = 200_000_000;
        &mut log
    });
    let scan = scan(&mut log, |_| ());
    assert_eq!(scan.skipped, skipped(&[Skip::TooLong]));
    assert!(log.into_inner().1.asked_max <= RECORD_BYTES_MAX + 1024);
}

#[test]
fn nested_beginnings_take_no_more_than_linear_time() {
    let nested = r#"{"timestamp":[{"#.repeat(300_000);
    let started = std::time::Instant::now();
    let (requests, _) = read(&[nested.as_bytes(), b"\n", &record_of(100)].concat()[..]);
    assert_eq!(requests.len(), 1);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

// Samples and properties.

#[test]
fn every_record_of_the_samples_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples");
    let Ok(entries) = fs::read_dir(&folder) else {
        return eprintln!("no samples in `{}`: nothing was checked", folder.display());
    };
    let mut records = 0;
    for path in entries.map(|entry| entry.unwrap().path()) {
        let packed = match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => true,
            Some("ndjson" | "jsonl") => false,
            _ => continue,
        };
        let bytes = fs::read(&path).unwrap();
        let mut text = bytes.clone();
        if packed {
            text.clear();
            flate2::read::MultiGzDecoder::new(&bytes[..])
                .read_to_end(&mut text)
                .unwrap();
        }
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.trim_ascii().is_empty())
            .count() as u64;
        let scan = scan(&bytes[..], |request| {
            assert!(!request.client_ip.is_unspecified() && !request.action.is_empty() && !request.method.is_empty());
        });
        let expected = Scan {
            requests: lines,
            bytes: text.len() as u64,
            ..Scan::default()
        };
        assert_eq!(scan, expected, "{}", path.display());
        records += lines;
    }
    assert!(records >= 80, "only {records} records in the samples");
}

/// A good record with these strings in it, and the way it is to be read.
fn good_record(number: u32, uri: &str, header: &str) -> String {
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    format!(
        r#"{{"timestamp":{},"formatVersion":1,"webaclId":"a","terminatingRuleId":"r","action":"ALLOW","terminatingRuleMatchDetails":[{{"matchedData":[{},{}]}}],"httpRequest":{{"clientIp":"192.0.2.1","headers":[{{"name":{},"value":{}}}],"uri":{},"args":{},"httpMethod":"GET"}}}}"#,
        1_793_534_400_000u64 + u64::from(number),
        quoted(uri),
        quoted(header),
        quoted(header),
        quoted(uri),
        quoted(uri),
        quoted(header),
    )
}

/// Text that an attacker would send to a log reader.
fn hostile() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("}{".to_owned()),
        Just("{\"timestamp\":1793534400000,\"httpRequest\":{\"clientIp\":\"198.51.100.66\"}}".to_owned()),
        Just("}\n{\"timestamp\":1".to_owned()),
        Just("\",\"uri\":\"".to_owned()),
        Just("\\".to_owned()),
        Just("\"".to_owned()),
        Just("[{".to_owned()),
        Just("\"}]}}".to_owned()),
        Just("2026-11-01T12:00:00Z {".to_owned()),
        "[{}\\[\\]:,\"\\\\ \n\ra-e0-9\u{0}\u{20ac}\u{1f600}]{0,6}",
    ];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

/// What stands between good lines.
#[derive(Debug, Clone)]
enum Between {
    Text(String),
    Cut(String, String, prop::sample::Index),
}

fn between() -> impl Strategy<Value = Between> {
    prop_oneof![
        "#[ -z|}~]{0,40}".prop_map(Between::Text),
        (hostile(), hostile(), any::<prop::sample::Index>())
            .prop_map(|(uri, header, cut)| Between::Cut(uri, header, cut)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn good_lines_are_read_whatever_stands_between_them(
        lines in prop::collection::vec((hostile(), hostile(), prop::collection::vec(between(), 0..3)), 1..8),
        delimited in any::<bool>(),
    ) {
        let (mut log, mut expected, mut cuts, mut texts) = (Vec::new(), Vec::new(), 0, 0);
        for (number, (uri, header, others)) in lines.iter().enumerate() {
            for other in others {
                match other {
                    Between::Text(text) => {
                        log.extend_from_slice(text.as_bytes());
                        texts += 1;
                    }
                    Between::Cut(uri, header, cut) => {
                        let record = good_record(999, uri, header);
                        // Less than that could be anything, also to us.
                        log.extend_from_slice(&record.as_bytes()[..20 + cut.index(record.len() - 20)]);
                        cuts += 1;
                    }
                }
                log.push(b'\n');
            }
            log.extend_from_slice(good_record(number as u32, uri, header).as_bytes());
            if delimited || lines.get(number + 1).is_some_and(|(_, _, others)| !others.is_empty()) {
                log.push(b'\n');
            }
            expected.push((1_793_534_400_000 + number as i64, uri.clone(), header.clone()));
        }
        let mut read = Vec::new();
        let scan = scan(&log[..], |request| {
            read.push((request.timestamp_ms, request.uri.to_string(), request.args.to_string()));
        });
        prop_assert_eq!(read, expected, "{}", String::from_utf8_lossy(&log));
        let skips = [vec![Skip::Truncated; cuts], vec![Skip::NotJson; texts]].concat();
        prop_assert_eq!(scan.skipped, skipped(&skips), "{}", String::from_utf8_lossy(&log));
    }

    #[test]
    fn hostile_strings_stay_strings(strings in prop::collection::vec((hostile(), hostile()), 1..6), wrapped in any::<bool>(), newline in any::<bool>()) {
        let mut log = String::new();
        for (uri, header) in &strings {
            let record = good_record(0, uri, header);
            log += &if wrapped { serde_json::json!({ "message": record }).to_string() } else { record };
            log += if newline { "\n" } else { "" };
        }
        let mut read = Vec::new();
        let scan = scan(log.as_bytes(), |request| read.push((request.uri.to_string(), request.args.to_string())));
        prop_assert_eq!(read, strings);
        prop_assert_eq!(scan.skipped.total(), 0);
    }

    #[test]
    fn nothing_makes_a_scan_panic_and_good_lines_survive_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let good = good_record(1, "/good", "yes");
        let mut damaged = good_record(2, "/bad", "no").into_bytes();
        for (at, byte) in flips {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        let log = [&b"\n"[..], &bytes, b"\n", good.as_bytes(), b"\n", &damaged, b"\n", good.as_bytes(), b"\n", &bytes].concat();
        let mut read = 0;
        scan(&log[..], |request| read += usize::from(request.uri == "/good"));
        // Behind a stray quote or brace anything can follow, but a line that begins like a record is one.
        prop_assert_eq!(read, 2, "{}", String::from_utf8_lossy(&log));
    }
}

// The two readers of records, and the two of gzip.

#[test]
fn both_readers_read_the_same_on_records_made_to_confuse_them() {
    let mut as_written = 0;
    // The last is where a reader that remembered how records begin once took a key that stood elsewhere for one of them.
    for (seed, logs_count, records) in [
        (0, 250, 20),
        (1, 250, 20),
        (2, 250, 20),
        (3, 250, 20),
        (1_000_000, 330, 50),
    ] {
        let mut logs = Logs::new(seed);
        for number in 0..logs_count {
            let wants = logs.wants();
            // Some buffers end in the middle of records.
            let buffer_bytes = [64 * 1024, 512, 1500, 64 * 1024][number % 4];
            let log = logs.next_log(records);
            as_written += compare::read_as_written(log);
            if let Some(disagreement) = compare::disagreement(log, &wants, buffer_bytes) {
                panic!("seed {seed}, log {number}, {wants:?}:\n{disagreement}");
            }
        }
    }
    assert!(
        as_written > 7_000,
        "only {as_written} of 36,500 records were read as written"
    );
}

#[test]
fn both_readers_read_the_same_in_fixtures_and_samples() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples");
    let samples = fs::read_dir(samples).map_or_else(
        |_| Vec::new(),
        |entries| entries.map(|entry| entry.unwrap().path()).collect(),
    );
    for path in fixtures().into_iter().chain(samples) {
        let log = fs::read(&path).unwrap();
        for wants in [
            Wants::everything(),
            Wants::nothing(),
            Wants::nothing().and_header("HOST"),
        ] {
            if let Some(disagreement) = compare::disagreement(&log, &wants, 256 * 1024) {
                panic!("{}, {wants:?}:\n{disagreement}", path.display());
            }
        }
    }
}

#[test]
fn what_is_not_wanted_is_not_handed_out_and_changes_nothing_else() {
    let log = fixture("rich.ndjson");
    let mut whole = Vec::new();
    scan(&log[..], |request| {
        whole.push((
            request.uri.to_string(),
            request.host.as_deref().map(str::to_owned),
            request.headers.len(),
            request.labels.len(),
        ));
    });
    assert!(whole.iter().any(|(_, _, headers, labels)| *headers > 1 && *labels > 0));
    let mut bare = Vec::new();
    scan_for(&log[..], &Wants::nothing(), |request| {
        bare.push((request.uri.to_string(), request.host.as_deref().map(str::to_owned)));
        assert!(request.headers.is_empty() && request.labels.is_empty());
    });
    assert_eq!(
        bare,
        whole.into_iter().map(|(uri, host, ..)| (uri, host)).collect::<Vec<_>>()
    );
}

/// What a reader gives before it fails or ends, and how it ends.
fn unpacked(mut packed: impl Read, step: usize) -> (Vec<u8>, Option<io::ErrorKind>) {
    let mut text = Vec::new();
    let mut buffer = vec![0; step];
    loop {
        match packed.read(&mut buffer) {
            Ok(0) => return (text, None),
            Ok(read) => text.extend_from_slice(&buffer[..read]),
            Err(error) => return (text, Some(error.kind())),
        }
    }
}

/// Reads with our own unpacking and with zlib; what came before an error must be there, though zlib may have given less of it.
fn unpack_alike(packed: &[u8], step: usize) {
    let (ours, our_end) = unpacked(
        Gunzip::new(io::BufReader::with_capacity(step.clamp(1, 50), packed)),
        step,
    );
    let (zlib, zlib_end) = unpacked(flate2::bufread::GzDecoder::new(packed), step);
    if zlib_end.is_none() {
        assert_eq!((our_end, ours == zlib), (None, true), "{packed:02x?}");
    } else {
        assert!(
            our_end.is_some() && ours.starts_with(&zlib),
            "{our_end:?} {zlib_end:?} {packed:02x?}"
        );
    }
}

/// Texts that give all kinds of blocks: much said before, near and far, little, and nothing.
fn packable() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"{\"name\":\"accept\",\"value\":\"*/*\"},".to_vec()),
        (any::<u8>(), 1usize..3000).prop_map(|(byte, times)| vec![byte; times]),
        (prop::collection::vec(any::<u8>(), 1..40), 1usize..200).prop_map(|(bytes, times)| bytes.repeat(times)),
        prop::collection::vec(any::<u8>(), 0..5000),
        "[ab]{0,300}".prop_map(String::into_bytes),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gzip_is_unpacked_as_zlib_does(
        text in packable(),
        level in 0u32..10,
        step in prop_oneof![1usize..20, 300usize..700, Just(200_000)],
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(&text).unwrap();
        let packed = encoder.finish().unwrap();
        let (ours, end) = unpacked(Gunzip::new(&packed[..]), step);
        prop_assert_eq!((ours == text, end), (true, None));

        let mut broken = packed;
        for (at, byte) in damage {
            let at = at.index(broken.len());
            broken[at] = byte;
        }
        if let Some(cut) = cut {
            broken.truncate(cut.index(broken.len()) + 1);
        }
        unpack_alike(&broken, step);
    }
}

#[test]
fn long_texts_are_unpacked_as_zlib_does() {
    let text = many_lines(20_000);
    for level in [1, 6, 9] {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(&text).unwrap();
        let packed = encoder.finish().unwrap();
        for step in [1000, 4096, 100_000, 256 * 1024] {
            let (ours, end) = unpacked(Gunzip::new(&packed[..]), step);
            assert!(
                ours == text && end.is_none(),
                "level {level}, {step} bytes at a time: {end:?}"
            );
        }
    }
}

#[test]
fn what_gzip_headers_may_hold_is_passed_over() {
    let packed = gzip(b"text");
    let (deflated, name) = (&packed[10..], b"name\0");
    let header = |flags: u8| [&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255][..]].concat();
    let with_all = [&header(0b11110)[..], &[3, 0, 1, 2, 3], name, b"comment\0"].concat();
    let mut checksum = flate2::Crc::new();
    checksum.update(&with_all);
    let checksum = (checksum.sum() as u16).to_le_bytes();
    for (what, packed, good) in [
        ("a name", [&header(0b1000)[..], name, deflated].concat(), true),
        ("everything", [&with_all[..], &checksum, deflated].concat(), true),
        (
            "a wrong checksum",
            [&with_all[..], &[checksum[0] ^ 1, checksum[1]], deflated].concat(),
            false,
        ),
        ("reserved flags", [&header(0b10_0000)[..], deflated].concat(), false),
        (
            "another method",
            [&[0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 255][..], deflated].concat(),
            false,
        ),
    ] {
        let (text, end) = unpacked(Gunzip::new(&packed[..]), 100);
        assert_eq!((text == b"text", end.is_none()), (good, good), "{what}: {end:?}");
        unpack_alike(&packed, 100);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_address_is_what_the_standard_library_says(
        v4 in any::<[u8; 4]>().prop_map(std::net::Ipv4Addr::from),
        v6 in any::<[u16; 8]>().prop_map(std::net::Ipv6Addr::from),
        text in "[0-9.]{0,16}|([0-9]{1,4}[.]){3}[0-9]{1,4}|::(ffff:)?[0-9.:a-f]{1,15}",
    ) {
        for text in [v4.to_string(), v6.to_string().to_uppercase(), text] {
            let known = text.parse::<std::net::IpAddr>().ok().map(|address| address.to_canonical());
            prop_assert_eq!(as_written::address(text.as_bytes()), known, "{}", text);
        }
    }
}
