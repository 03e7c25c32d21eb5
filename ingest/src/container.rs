//! Unpacks an object, whatever it is packed in.
//!
//! The format is found by the bytes: names lie (Firehose adds `.gz` to what it compressed, people rename and re-upload,
//! browsers unpack on download). gzip and zstd are unpacked, several members or frames after each other, and one inside
//! the other: a CloudWatch Logs subscription is gzip, and Firehose may gzip it again.

use std::io::{self, BufRead, BufReader, Read};

use crate::inflate::Gunzip;

/// Compressed in compressed in compressed occurs; more is a bomb or a mistake.
const LAYERS_MAX: usize = 3;

/// Bytes looked at to tell the format. The longest magic number is snappy's, with ten bytes.
const MAGIC_BYTES: usize = 16;

/// Compressed bytes read at once.
const INPUT_BYTES: usize = 64 * 1024;

/// Why the rest of an object could not be read; what came before it is counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The compressed data ends early.
    #[error("the compressed data ends in the middle: the object was written only in part")]
    CutShort,
    /// The compressed data contradicts itself, or something else follows it.
    #[error("the {format} data is damaged: {message}")]
    Corrupt {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// What the decoder says.
        message: String,
    },
    /// A format that is none of ours.
    #[error("this is {what}: Palisade reads plain text, gzip and zstd")]
    Unsupported {
        /// The format, with its article.
        what: &'static str,
    },
    /// Neither text nor a compressed format we know.
    #[error("this is not text, nor a compressed format that Palisade knows")]
    Binary,
    /// The reader failed.
    #[error("the object could not be read to its end: {message}")]
    Io {
        /// The kind of the reader's error.
        kind: io::ErrorKind,
        /// What the reader says.
        message: String,
    },
}

impl Stop {
    /// The stop inside an error that one of the readers below made.
    pub(crate) fn from_error(error: io::Error) -> Stop {
        let kind = error.kind();
        match error.downcast::<Stop>() {
            Ok(stop) => stop,
            Err(error) => Stop::Io {
                kind,
                message: error.to_string(),
            },
        }
    }
}

/// The text of an object, unpacked. Every error of the returned reader carries a [`Stop`].
pub(crate) fn unpack<'r>(log: impl Read + 'r) -> Result<Box<dyn Read + 'r>, Stop> {
    let mut layer: Box<dyn Read + 'r> = Box::new(Source(log));
    for _ in 0..=LAYERS_MAX {
        let peeked = Peeked::new(layer);
        match Format::of(&peeked.head) {
            Format::Plain => return Ok(Box::new(peeked)),
            Format::Unsupported(what) => return Err(Stop::Unsupported { what }),
            Format::Gzip | Format::Zstd => {
                layer = Box::new(Members::Between(BufReader::with_capacity(INPUT_BYTES, peeked)));
            }
        }
    }
    Err(Stop::Unsupported {
        what: "compressed more than three times over",
    })
}

enum Format {
    Plain,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

impl Format {
    fn of(head: &[u8]) -> Format {
        match head {
            [0x1f, 0x8b, ..] => Format::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Format::Unsupported("a zip archive"),
            [0xff, 6, 0, 0, b's', b'N', b'a', b'P', b'p', b'Y', ..]
            | [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, ..] => Format::Unsupported("snappy data"),
            [b'P', b'A', b'R', b'1', ..] => Format::Unsupported("a parquet file"),
            [4, 0x22, 0x4d, 0x18, ..] => Format::Unsupported("lz4 data"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] => Format::Unsupported("bzip2 data"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Format::Unsupported("xz data"),
            _ => Format::Plain,
        }
    }
}

/// The caller's reader, its errors marked as such: to a decoder above, `UnexpectedEof` would otherwise mean cut data.
struct Source<R>(R);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody unpacked it before us, and knows better.
                Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Stop>()) => return Err(error),
                Err(error) => {
                    return Err(io::Error::other(Stop::Io {
                        kind: error.kind(),
                        message: error.to_string(),
                    }));
                }
                Ok(read) => return Ok(read),
            }
        }
    }
}

/// A reader whose first bytes have been looked at. An error met on the way comes back when the reader gets there.
struct Peeked<R> {
    head: Vec<u8>,
    given: usize,
    error: Option<io::Error>,
    rest: R,
}

impl<R: Read> Peeked<R> {
    fn new(mut rest: R) -> Peeked<R> {
        let mut head = vec![0; MAGIC_BYTES];
        let (mut filled, mut error) = (0, None);
        while filled < MAGIC_BYTES {
            match rest.read(&mut head[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(met) => {
                    error = Some(met);
                    break;
                }
            }
        }
        head.truncate(filled);
        Peeked {
            head,
            given: 0,
            error,
            rest,
        }
    }
}

impl<R: Read> Read for Peeked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let head = &self.head[self.given..];
        if !head.is_empty() {
            let length = head.len().min(buffer.len());
            buffer[..length].copy_from_slice(&head[..length]);
            self.given += length;
            return Ok(length);
        }
        match self.error.take() {
            Some(error) => Err(error),
            None => self.rest.read(buffer),
        }
    }
}

/// The members of a gzip file or the frames of a zstd file, one after the other, as one text.
enum Members<R: BufRead> {
    Between(R),
    Gzip(Box<Gunzip<R>>),
    Zstd(Box<zstd::Decoder<'static, R>>),
    Done,
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            // Whatever fails leaves `Done` behind: nothing after damage can be trusted to be what it seems.
            *self = match std::mem::replace(self, Members::Done) {
                Members::Done => return Ok(0),
                Members::Between(packed) => Members::next(packed)?,
                Members::Gzip(mut member) => match member.read(buffer).map_err(|error| broken("gzip", error))? {
                    0 => Members::Between(member.into_inner()),
                    read => {
                        *self = Members::Gzip(member);
                        return Ok(read);
                    }
                },
                Members::Zstd(mut frame) => match frame.read(buffer).map_err(|error| broken("zstd", error))? {
                    0 => Members::Between(frame.finish()),
                    read => {
                        *self = Members::Zstd(frame);
                        return Ok(read);
                    }
                },
            }
        }
    }
}

impl<R: BufRead> Members<R> {
    /// The member that begins here, behind any zeros: tools pad files to whole blocks, and gzip itself ignores that.
    fn next(mut packed: R) -> io::Result<Members<R>> {
        loop {
            let ahead = packed.fill_buf()?;
            let zeros = ahead.iter().take_while(|byte| **byte == 0).count();
            match ahead.get(zeros) {
                None if ahead.is_empty() => return Ok(Members::Done),
                None => packed.consume(zeros),
                // One byte is all that is sure to be here; if it was not meant so, the decoder will say so.
                Some(first) => {
                    let first = *first;
                    packed.consume(zeros);
                    return match first {
                        0x1f => Ok(Members::Gzip(Box::new(Gunzip::new(packed)))),
                        0x28 | 0x50..=0x5f => {
                            let frame = zstd::Decoder::with_buffer(packed).map_err(|error| broken("zstd", error))?;
                            Ok(Members::Zstd(Box::new(frame.single_frame())))
                        }
                        _ => Err(io::Error::other(Stop::Corrupt {
                            format: "compressed",
                            message: "something else follows it".to_owned(),
                        })),
                    };
                }
            }
        }
    }
}

/// A decoder's error as a [`Stop`]; a stop from below passes through.
fn broken(format: &'static str, error: io::Error) -> io::Error {
    let kind = error.kind();
    let stop = match error.downcast::<Stop>() {
        Ok(stop) => stop,
        Err(_) if kind == io::ErrorKind::UnexpectedEof => Stop::CutShort,
        Err(error) => Stop::Corrupt {
            format,
            message: error.to_string(),
        },
    };
    io::Error::other(stop)
}
