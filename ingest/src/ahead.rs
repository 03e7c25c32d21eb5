//! Unpacks an object on a thread of its own, ahead of whoever scans it.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use crate::container::unpack;
use crate::request::{Request, Wants};
use crate::scan::{Scan, scan_for};

/// Unpacked bytes that are handed over at once: a few of these stay in a processor's cache.
const PIECE_BYTES: usize = 128 * 1024;

/// Pieces that may wait; this bounds the memory.
const PIECES_WAITING_MAX: usize = 4;

/// [`scan_for()`] for who has a processor core to spare: unpacking takes about as long as everything else together.
pub fn scan_ahead<R: Read + Send>(log: R, wants: &Wants, each: impl FnMut(&Request<'_>)) -> Scan {
    let (pieces, receiver) = sync_channel(PIECES_WAITING_MAX);
    let (used, reusable) = channel();
    thread::scope(|scope| {
        scope.spawn(move || send(log, &pieces, &reusable));
        let text = Ahead {
            pieces: receiver,
            used,
            piece: Vec::new(),
            given: 0,
        };
        scan_for(text, wants, each)
    })
}

/// Unpacks until the end, or until nobody listens any more.
fn send(log: impl Read, pieces: &SyncSender<io::Result<Vec<u8>>>, reusable: &Receiver<Vec<u8>>) {
    let mut text = match unpack(log) {
        Ok(text) => text,
        Err(stop) => {
            let _ = pieces.send(Err(io::Error::other(stop)));
            return;
        }
    };
    loop {
        let mut piece = reusable.try_recv().unwrap_or_default();
        piece.resize(PIECE_BYTES, 0);
        let read = text.read(&mut piece).inspect(|read| piece.truncate(*read));
        let is_last = !matches!(read, Ok(1..));
        if pieces.send(read.map(|_| piece)).is_err() || is_last {
            return;
        }
    }
}

/// The unpacked text, as it comes.
struct Ahead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    used: Sender<Vec<u8>>,
    piece: Vec<u8>,
    /// How much of the piece was given.
    given: usize,
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.piece.len() {
            let next = match self.pieces.recv() {
                Ok(next) => next?,
                // The other thread has sent everything.
                Err(_) => return Ok(0),
            };
            let _ = self.used.send(std::mem::replace(&mut self.piece, next));
            self.given = 0;
        }
        let rest = &self.piece[self.given..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.given += length;
        Ok(length)
    }
}
