//! Unpacks gzip members as fast as their text can be scanned.
//!
//! DEFLATE (RFC 1951) in gzip (RFC 1952), written for what is most of our work: text in which nearly everything has been
//! said before, so that long matches are the rule, read as a stream into a buffer that stays in the cache. On WAF logs it
//! takes less than half the time of the general decoders that can read a stream, and
//! its memory does not depend on what is unpacked. What it accepts is what zlib accepts; tests compare the two.
//!
//! A code is looked up in a table by the next bits of the input, as in zlib and libdeflate: one look-up for codes of up to
//! [`LITLEN_BITS`] or [`OFFSET_BITS`] bits, a second one in a subtable for longer ones. [`Gunzip::fast`] runs where neither
//! the input nor the output can end within a symbol, [`Gunzip::careful`] where they can.

use std::io::{self, BufRead, Read};

use crc32fast::Hasher;

/// How far back a match may reach.
const HISTORY: usize = 32 * 1024;

const LITLEN_BITS: u32 = 11;
/// With subtables 2,342 entries at most (zlib's `enough` for 288 symbols, 11 bits, 15 bits); a power of two spares checks.
const LITLEN_TABLE: usize = 4096;

const OFFSET_BITS: u32 = 8;
/// With subtables 402 entries at most (zlib's `enough` for 32 symbols, 8 bits, 15 bits).
const OFFSET_TABLE: usize = 512;

/// Codes of code lengths have 7 bits at most, so this table has no subtables.
const LENGTHS_BITS: u32 = 7;

const CODE_BITS_MAX: usize = 15;

/// The longest match.
const MATCH_MAX: usize = 258;

/// Matches are copied in pieces of this size, the last of which may reach beyond the match.
const PIECE: usize = 64;

/// So much room in the output lets a symbol be decoded without looking: a few literals, the longest match, its last piece.
const OUTPUT_MARGIN: usize = MATCH_MAX + PIECE + 8;

/// So much input lets a symbol be decoded without looking: three refills.
const INPUT_MARGIN: usize = 32;

// An entry of a table: from the lowest bit on 8 bits with the bits to take (the code and its extra bits), 4 bits with those
// of the code alone, flags, and from bit 16 on the value: a literal, the least length or offset, or where a subtable begins.
// A literal may have the one after it with it, whose code counts as extra bits and whose value, ASCII, begins at bit 24.
const LITERAL: u32 = 1 << 31;
const EXCEPTIONAL: u32 = 1 << 15;
const SUBTABLE: u32 = 1 << 14;
const END_OF_BLOCK: u32 = 1 << 13;
const PAIR: u32 = 1 << 12;

/// What no code leads to.
const INVALID: u32 = EXCEPTIONAL | 1 << 8 | 1;

fn entry(value: u32, code_bits: u32, extra_bits: u32) -> u32 {
    value << 16 | code_bits << 8 | (code_bits + extra_bits)
}

/// Reads one gzip member; the bytes behind it stay in the reader below.
pub(crate) struct Gunzip<R> {
    packed: R,
    /// Bits of the input that are not used yet, the next one lowest. Above `bits_count` there may be a copy of bits that
    /// are still in the reader.
    bits: u64,
    bits_count: u32,
    state: State,
    last_block: bool,
    /// A match of which only a part fitted into the output: length and offset.
    pending: (usize, usize),
    litlen: Box<[u32; LITLEN_TABLE]>,
    offset: Box<[u32; OFFSET_TABLE]>,
    /// What was given last, at the end of this.
    history: Box<[u8; HISTORY]>,
    /// How much was given so far, up to [`HISTORY`].
    history_length: usize,
    checksum: Hasher,
    length: u32,
    /// What went wrong behind the bytes that were given last.
    error: Option<io::Error>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    BlockHeader,
    Stored(usize),
    Coded,
    Trailer,
    Done,
}

impl<R: BufRead> Gunzip<R> {
    /// The member whose first byte is next in `packed`.
    pub(crate) fn new(packed: R) -> Gunzip<R> {
        Gunzip {
            packed,
            bits: 0,
            bits_count: 0,
            state: State::Header,
            last_block: false,
            pending: (0, 0),
            litlen: Box::new([INVALID; LITLEN_TABLE]),
            offset: Box::new([INVALID; OFFSET_TABLE]),
            history: Box::new([0; HISTORY]),
            history_length: 0,
            checksum: Hasher::new(),
            length: 0,
            error: None,
        }
    }

    /// The reader below. When the member has been read to its end, what follows the member is next in it.
    pub(crate) fn into_inner(self) -> R {
        self.packed
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.error.take() {
            self.state = State::Done;
            return Err(error);
        }
        let mut written = 0;
        while written < output.len() && self.state != State::Done {
            if let Err(error) = self.step(output, &mut written) {
                if written == 0 {
                    self.state = State::Done;
                    return Err(error);
                }
                // What came before the damage is good.
                self.error = Some(error);
                break;
            }
        }
        let given = &output[..written];
        if self.error.is_none() && self.state == State::Done {
            return Ok(written);
        }
        self.remember(given);
        Ok(written)
    }
}

impl<R: BufRead> Gunzip<R> {
    /// Goes on, until the output is full or the state has changed.
    fn step(&mut self, output: &mut [u8], written: &mut usize) -> io::Result<()> {
        match self.state {
            State::Header => self.header(),
            State::BlockHeader => self.block_header(),
            State::Stored(left) => self.stored(left, output, written),
            State::Coded => self.coded(output, written),
            State::Trailer => {
                self.remember(&output[..*written]);
                self.trailer()
            }
            State::Done => Ok(()),
        }
    }

    /// Keeps what later matches may refer to, and what the trailer will be compared with.
    fn remember(&mut self, given: &[u8]) {
        self.checksum.update(given);
        self.length = self.length.wrapping_add(given.len() as u32);
        if given.len() >= HISTORY {
            self.history.copy_from_slice(&given[given.len() - HISTORY..]);
        } else {
            self.history.copy_within(given.len().., 0);
            self.history[HISTORY - given.len()..].copy_from_slice(given);
        }
        self.history_length = (self.history_length + given.len()).min(HISTORY);
    }

    // Bits.

    /// One more byte of the input into the bits.
    fn pull(&mut self) -> io::Result<()> {
        let byte = match self.packed.fill_buf()? {
            [] => return Err(io::ErrorKind::UnexpectedEof.into()),
            [byte, ..] => *byte,
        };
        self.packed.consume(1);
        self.bits |= u64::from(byte) << self.bits_count;
        self.bits_count += 8;
        Ok(())
    }

    /// The next `count` bits, 32 at most.
    fn take(&mut self, count: u32) -> io::Result<u32> {
        while self.bits_count < count {
            self.pull()?;
        }
        let taken = self.bits & ((1 << count) - 1);
        self.drop_bits(count);
        Ok(taken as u32)
    }

    fn drop_bits(&mut self, count: u32) {
        self.bits >>= count;
        self.bits_count -= count;
    }

    /// The entry that the next bits lead to, without its extra bits, which are next then.
    fn entry_of(&mut self, table: Table) -> io::Result<u32> {
        loop {
            let (at, main_bits) = match table {
                Table::Litlen => (self.litlen[low(self.bits, LITLEN_BITS)], LITLEN_BITS),
                Table::Offset => (self.offset[low(self.bits, OFFSET_BITS)], OFFSET_BITS),
            };
            let (found, code_bits) = if at & SUBTABLE == 0 {
                (at, at >> 8 & 0xf)
            } else {
                let index = (at >> 16) as usize + low(self.bits >> main_bits, at & 0xff);
                let found = match table {
                    Table::Litlen => self.litlen[index % LITLEN_TABLE],
                    Table::Offset => self.offset[index % OFFSET_TABLE],
                };
                (found, main_bits + (found >> 8 & 0xf))
            };
            if code_bits <= self.bits_count {
                self.drop_bits(code_bits);
                return Ok(found);
            }
            self.pull()?;
        }
    }

    // Around the blocks.

    fn header(&mut self) -> io::Result<()> {
        let mut checksum = Hasher::new();
        let mut fixed = [0; 10];
        self.bytes(&mut fixed, &mut checksum)?;
        let flags = fixed[3];
        if fixed[..3] != [0x1f, 0x8b, 8] || flags & 0b1110_0000 != 0 {
            return Err(damaged("invalid gzip header"));
        }
        if flags & 0b100 != 0 {
            let mut length = [0; 2];
            self.bytes(&mut length, &mut checksum)?;
            for _ in 0..u16::from_le_bytes(length) {
                self.bytes(&mut [0], &mut checksum)?;
            }
        }
        // The file's name, then a comment, each up to a zero.
        for flag in [0b1000, 0b1_0000] {
            let mut byte = [u8::from(flags & flag != 0)];
            while byte != [0] {
                self.bytes(&mut byte, &mut checksum)?;
            }
        }
        if flags & 0b10 != 0 {
            let expected = checksum.finalize() as u16;
            let mut written = [0; 2];
            self.bytes(&mut written, &mut Hasher::new())?;
            if u16::from_le_bytes(written) != expected {
                return Err(damaged("the gzip header does not match its checksum"));
            }
        }
        self.state = State::BlockHeader;
        Ok(())
    }

    fn bytes(&mut self, into: &mut [u8], checksum: &mut Hasher) -> io::Result<()> {
        for byte in into.iter_mut() {
            *byte = self.take(8)? as u8;
        }
        checksum.update(into);
        Ok(())
    }

    fn trailer(&mut self) -> io::Result<()> {
        self.drop_bits(self.bits_count % 8);
        let checksum = self.take(32)?;
        // At most 63 bits were taken ahead, and these are 64: none is left that belongs to what follows.
        let length = self.take(32)?;
        self.bits = 0;
        self.state = State::Done;
        if checksum != std::mem::take(&mut self.checksum).finalize() || length != self.length {
            return Err(damaged("the text does not match its checksum"));
        }
        Ok(())
    }

    fn block_header(&mut self) -> io::Result<()> {
        if self.last_block {
            self.state = State::Trailer;
            return Ok(());
        }
        self.last_block = self.take(1)? == 1;
        match self.take(2)? {
            0 => {
                self.drop_bits(self.bits_count % 8);
                let length = self.take(16)?;
                if self.take(16)? != length ^ 0xffff {
                    return Err(damaged("invalid length of a stored block"));
                }
                self.state = State::Stored(length as usize);
            }
            1 => {
                let mut lengths = [8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                build(&mut *self.litlen, LITLEN_BITS, &lengths, litlen_symbol);
                build(&mut *self.offset, OFFSET_BITS, &[5; 32], offset_symbol);
                self.state = State::Coded;
            }
            2 => {
                self.codes()?;
                self.state = State::Coded;
            }
            _ => return Err(damaged("invalid type of a block")),
        }
        Ok(())
    }

    /// Reads the codes of a block.
    fn codes(&mut self) -> io::Result<()> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let litlens = self.take(5)? as usize + 257;
        let offsets = self.take(5)? as usize + 1;
        let of_lengths = self.take(4)? as usize + 4;
        if litlens > 286 || offsets > 30 {
            return Err(damaged("too many length or offset symbols"));
        }
        let mut lengths = [0u8; 19];
        for symbol in &ORDER[..of_lengths] {
            lengths[*symbol] = self.take(3)? as u8;
        }
        let mut table = [INVALID; 1 << LENGTHS_BITS];
        let complete = build(&mut table, LENGTHS_BITS, &lengths, |symbol| (symbol, 0, 0));
        if complete != Code::Complete {
            return Err(damaged("invalid code of code lengths"));
        }
        let mut lengths = [0u8; 286 + 30];
        let mut at = 0;
        while at < litlens + offsets {
            let symbol = loop {
                let found = table[low(self.bits, LENGTHS_BITS)];
                if found >> 8 & 0xf <= self.bits_count {
                    self.drop_bits(found >> 8 & 0xf);
                    break found >> 16;
                }
                self.pull()?;
            };
            let (length, times) = match symbol {
                0..=15 => (symbol as u8, 1),
                16 if at == 0 => return Err(damaged("a code length is repeated before there is one")),
                16 => (lengths[at - 1], 3 + self.take(2)?),
                17 => (0, 3 + self.take(3)?),
                _ => (0, 11 + self.take(7)?),
            };
            let end = at + times as usize;
            if end > litlens + offsets {
                return Err(damaged("a code length is repeated too often"));
            }
            lengths[at..end].fill(length);
            at = end;
        }
        if lengths[256] == 0 {
            return Err(damaged("a block has no end"));
        }
        if build(&mut *self.litlen, LITLEN_BITS, &lengths[..litlens], litlen_symbol) == Code::Invalid {
            return Err(damaged("invalid code of literals and lengths"));
        }
        pair_literals(&mut self.litlen);
        let offsets = &lengths[litlens..litlens + offsets];
        if build(&mut *self.offset, OFFSET_BITS, offsets, offset_symbol) == Code::Invalid {
            return Err(damaged("invalid code of offsets"));
        }
        Ok(())
    }

    // In the blocks.

    fn stored(&mut self, mut left: usize, output: &mut [u8], written: &mut usize) -> io::Result<()> {
        while left > 0 && *written < output.len() {
            if self.bits_count >= 8 {
                output[*written] = self.take(8)? as u8;
                *written += 1;
                left -= 1;
            } else {
                // Nothing is left above the bits, now that bytes are taken past them.
                self.bits = 0;
                let packed = match self.packed.fill_buf() {
                    Ok([]) => Err(io::ErrorKind::UnexpectedEof.into()),
                    other => other,
                };
                let packed = match packed {
                    Ok(packed) => packed,
                    Err(error) => {
                        self.state = State::Stored(left);
                        return Err(error);
                    }
                };
                let length = left.min(packed.len()).min(output.len() - *written);
                output[*written..*written + length].copy_from_slice(&packed[..length]);
                self.packed.consume(length);
                *written += length;
                left -= length;
            }
        }
        self.state = if left == 0 {
            State::BlockHeader
        } else {
            State::Stored(left)
        };
        Ok(())
    }

    fn coded(&mut self, output: &mut [u8], written: &mut usize) -> io::Result<()> {
        if self.pending.0 > 0 {
            self.copy_match(output, written)?;
        }
        while *written < output.len() {
            if self.fast(output, written)? || self.careful(output, written)? {
                self.state = State::BlockHeader;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Decodes one symbol. Tells whether it ended the block.
    fn careful(&mut self, output: &mut [u8], written: &mut usize) -> io::Result<bool> {
        let found = self.entry_of(Table::Litlen)?;
        if found & LITERAL != 0 {
            output[*written] = (found >> 16) as u8;
            *written += 1;
            return Ok(false);
        }
        if found & EXCEPTIONAL != 0 {
            return if found & END_OF_BLOCK != 0 {
                Ok(true)
            } else {
                Err(damaged("invalid code of a literal or length"))
            };
        }
        let length = (found >> 16) + self.take((found & 0xff) - (found >> 8 & 0xf))?;
        let found = self.entry_of(Table::Offset)?;
        if found & EXCEPTIONAL != 0 {
            return Err(damaged("invalid code of an offset"));
        }
        let offset = (found >> 16) + self.take((found & 0xff) - (found >> 8 & 0xf))?;
        self.pending = (length as usize, offset as usize);
        self.copy_match(output, written)?;
        Ok(false)
    }

    /// Copies what fits of the match that is pending.
    fn copy_match(&mut self, output: &mut [u8], written: &mut usize) -> io::Result<()> {
        let (length, offset) = self.pending;
        if offset > *written + self.history_length {
            return Err(damaged("a match reaches back too far"));
        }
        let fits = length.min(output.len() - *written);
        for _ in 0..fits {
            output[*written] = match written.checked_sub(offset) {
                Some(from) => output[from],
                None => self.history[HISTORY + *written - offset],
            };
            *written += 1;
        }
        self.pending.0 -= fits;
        Ok(())
    }

    /// Decodes symbols as long as neither input nor output can end within one. Tells whether the block ended.
    fn fast(&mut self, output: &mut [u8], written: &mut usize) -> io::Result<bool> {
        let packed = self.packed.fill_buf()?;
        if packed.len() < INPUT_MARGIN || output.len() - *written < OUTPUT_MARGIN {
            return Ok(false);
        }
        let (last_in, last_out) = (packed.len() - INPUT_MARGIN, output.len() - OUTPUT_MARGIN);
        let (litlen, offsets) = (&*self.litlen, &*self.offset);
        let (mut bits, mut count, mut at, mut out) = (self.bits, self.bits_count, 0, *written);
        let mut ended = Ok(false);

        // Afterwards there are at least 56 bits. Those above are a copy of what is read once more the next time.
        macro_rules! refill {
            () => {
                bits |= word(packed, at) << count;
                at += (63 - count as usize) >> 3;
                count |= 56;
            };
        }
        macro_rules! drop_bits {
            ($count:expr) => {
                bits >>= $count;
                count -= $count;
            };
        }
        // One or two: what is not meant is overwritten.
        macro_rules! put_literals {
            ($found:expr) => {
                drop_bits!($found & 0xff);
                output[out..out + 2].copy_from_slice(&(($found >> 16 & 0x7fff) as u16).to_le_bytes());
                out += 1 + ($found >> 12 & 1) as usize;
            };
        }
        while at <= last_in && out <= last_out {
            refill!();
            let mut found = litlen[low(bits, LITLEN_BITS)];
            if found & LITERAL != 0 {
                put_literals!(found);
                found = litlen[low(bits, LITLEN_BITS)];
                if found & LITERAL != 0 {
                    put_literals!(found);
                    found = litlen[low(bits, LITLEN_BITS)];
                    if found & LITERAL != 0 {
                        put_literals!(found);
                        continue;
                    }
                }
                refill!();
            }
            if found & EXCEPTIONAL != 0 {
                if found & SUBTABLE != 0 {
                    drop_bits!(LITLEN_BITS);
                    found = litlen[((found >> 16) as usize + low(bits, found & 0xff)) % LITLEN_TABLE];
                    if found & LITERAL != 0 {
                        drop_bits!(found & 0xff);
                        output[out] = (found >> 16) as u8;
                        out += 1;
                        continue;
                    }
                }
                if found & EXCEPTIONAL != 0 {
                    drop_bits!(found & 0xff);
                    ended = if found & END_OF_BLOCK != 0 {
                        Ok(true)
                    } else {
                        Err("invalid code of a literal or length")
                    };
                    break;
                }
            }
            let length = (found >> 16) as usize + (low(bits, found & 0xff) >> (found >> 8 & 0xf));
            drop_bits!(found & 0xff);
            if count < 28 {
                refill!();
            }
            found = offsets[low(bits, OFFSET_BITS)];
            if found & EXCEPTIONAL != 0 {
                if found & SUBTABLE != 0 {
                    drop_bits!(OFFSET_BITS);
                    found = offsets[((found >> 16) as usize + low(bits, found & 0xff)) % OFFSET_TABLE];
                }
                if found & EXCEPTIONAL != 0 {
                    ended = Err("invalid code of an offset");
                    break;
                }
            }
            let offset = (found >> 16) as usize + (low(bits, found & 0xff) >> (found >> 8 & 0xf));
            drop_bits!(found & 0xff);

            let end = out + length;
            if offset > out {
                let before = offset - out;
                if before > self.history_length {
                    ended = Err("a match reaches back too far");
                    break;
                }
                let from = HISTORY - before;
                let there = length.min(before);
                output[out..out + there].copy_from_slice(&self.history[from..from + there]);
                for here in out + there..end {
                    output[here] = output[here - offset];
                }
            } else if length <= PIECE && offset >= PIECE {
                let piece: [u8; PIECE] = piece(output, out - offset);
                output[out..out + PIECE].copy_from_slice(&piece);
            } else if offset >= length {
                output.copy_within(out - offset..end - offset, out);
            } else if offset >= PIECE {
                let mut from = out - offset;
                while out < end {
                    let piece: [u8; PIECE] = piece(output, from);
                    output[out..out + PIECE].copy_from_slice(&piece);
                    from += PIECE;
                    out += PIECE;
                }
            } else if offset >= 8 {
                let mut from = out - offset;
                while out < end {
                    let piece: [u8; 8] = piece(output, from);
                    output[out..out + 8].copy_from_slice(&piece);
                    from += 8;
                    out += 8;
                }
            } else {
                for here in out..end {
                    output[here] = output[here - offset];
                }
            }
            out = end;
        }
        self.packed.consume(at);
        // Bits above the count come again.
        self.bits = bits & ((1 << count) - 1);
        self.bits_count = count;
        *written = out;
        ended.map_err(damaged)
    }
}

#[derive(Clone, Copy)]
enum Table {
    Litlen,
    Offset,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Code {
    Complete,
    /// No code, or a single one of one bit, which zlib lets pass; what has no code is invalid.
    Incomplete,
    Invalid,
}

/// Makes the table of a canonical Huffman code (RFC 1951, section 3.2.2) from the lengths of its codes. `symbol_of` tells
/// the value, extra bits and flags of a symbol.
fn build(table: &mut [u32], table_bits: u32, lengths: &[u8], symbol_of: impl Fn(u32) -> (u32, u32, u32)) -> Code {
    let mut counts = [0u16; CODE_BITS_MAX + 1];
    for length in lengths {
        counts[usize::from(*length)] += 1;
    }
    counts[0] = 0;
    table.fill(INVALID);
    let Some(longest) = (1..=CODE_BITS_MAX).rev().find(|length| counts[*length] > 0) else {
        return Code::Incomplete;
    };
    let mut left = 1i32;
    for count in &counts[1..] {
        left = (left << 1) - i32::from(*count);
        if left < 0 {
            return Code::Invalid;
        }
    }
    if left > 0 && longest != 1 {
        return Code::Invalid;
    }
    let mut begins = [0u16; CODE_BITS_MAX + 2];
    for length in 1..=CODE_BITS_MAX {
        begins[length + 1] = begins[length] + counts[length];
    }
    let mut sorted = [0u16; 288];
    for (symbol, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
        sorted[usize::from(begins[usize::from(*length)])] = symbol as u16;
        begins[usize::from(*length)] += 1;
    }

    let mut code = 0u32;
    let mut next = 0;
    let mut free = 1usize << table_bits;
    // The subtable that is being filled: its prefix, where it begins, its bits.
    let mut subtable = (u32::MAX, 0, 0);
    for length in 1..=longest as u32 {
        for number in 0..counts[length as usize] {
            let (value, extra_bits, flags) = symbol_of(u32::from(sorted[next]));
            next += 1;
            // Bits come lowest first, codes are written highest first.
            let reversed = (code.reverse_bits() >> (32 - length)) as usize;
            code += 1;
            if length <= table_bits {
                let filled = entry(value, length, extra_bits) | flags;
                table[..1 << table_bits]
                    .iter_mut()
                    .skip(reversed)
                    .step_by(1 << length)
                    .for_each(|at| *at = filled);
                continue;
            }
            let prefix = low(reversed as u64, table_bits) as u32;
            if prefix != subtable.0 {
                // As large as the codes that begin like this one need it: they are the next ones.
                let mut bits = length - table_bits;
                let mut room = (1i32 << bits) - i32::from(counts[length as usize] - number);
                while room > 0 && ((bits + table_bits) as usize) < longest {
                    bits += 1;
                    room = (room << 1) - i32::from(counts[(bits + table_bits) as usize]);
                }
                subtable = (prefix, free, bits);
                table[prefix as usize] = EXCEPTIONAL | SUBTABLE | (free as u32) << 16 | bits;
                free += 1 << bits;
            }
            let (_, begins, bits) = subtable;
            let filled = entry(value, length - table_bits, extra_bits) | flags;
            let first = reversed >> table_bits;
            table[begins..begins + (1 << bits)]
                .iter_mut()
                .skip(first)
                .step_by(1 << (length - table_bits))
                .for_each(|at| *at = filled);
        }
        code <<= 1;
    }
    if left > 0 { Code::Incomplete } else { Code::Complete }
}

/// Puts literals together with those after them, where one look-up shows both.
fn pair_literals(litlen: &mut [u32; LITLEN_TABLE]) {
    // From above: what is looked up for the second one is below, and still alone.
    for at in (0..1 << LITLEN_BITS).rev() {
        let first = litlen[at];
        if first & LITERAL == 0 {
            continue;
        }
        let bits = first & 0xff;
        let second = litlen[at >> bits];
        let is_whole = bits + (second & 0xff) <= LITLEN_BITS;
        if second & LITERAL != 0 && is_whole && second >> 16 & 0xff < 0x80 {
            litlen[at] = (first + (second & 0xff)) | PAIR | (second >> 16 & 0x7f) << 24;
        }
    }
}

fn litlen_symbol(symbol: u32) -> (u32, u32, u32) {
    match symbol {
        0..=255 => (symbol, 0, LITERAL),
        256 => (0, 0, EXCEPTIONAL | END_OF_BLOCK),
        257..=264 => (symbol - 254, 0, 0),
        265..=284 => {
            let (step, extra_bits) = ((symbol - 265) % 4, (symbol - 261) / 4);
            (((4 + step) << extra_bits) + 3, extra_bits, 0)
        }
        285 => (MATCH_MAX as u32, 0, 0),
        _ => (0, 0, EXCEPTIONAL),
    }
}

fn offset_symbol(symbol: u32) -> (u32, u32, u32) {
    match symbol {
        0..=3 => (symbol + 1, 0, 0),
        4..=29 => {
            let (step, extra_bits) = (symbol % 2, symbol / 2 - 1);
            (((2 + step) << extra_bits) + 1, extra_bits, 0)
        }
        _ => (0, 0, EXCEPTIONAL),
    }
}

/// The lowest `count` bits.
#[inline(always)]
fn low(bits: u64, count: u32) -> usize {
    (bits & ((1 << count) - 1)) as usize
}

/// Eight bytes of the input, the first one lowest.
#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(piece(bytes, at))
}

#[inline(always)]
fn piece<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut piece = [0; N];
    piece.copy_from_slice(&bytes[at..at + N]);
    piece
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
