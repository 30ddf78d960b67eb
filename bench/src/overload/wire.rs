//! The client's half of HTTP/2, no more of it than puts need, at a cost of a microsecond a call: a generator that shares the machine with
//! what it measures must not be what is measured. RFC 9113 for the frames; nothing here waits, reads or writes.
//!
//! Two things make it cheap. The headers of all requests are the same bytes. And the server is told to keep no table of headers
//! (SETTINGS_HEADER_TABLE_SIZE 0), so that the same answer is the same bytes too, and is decoded once.

use super::answer::Answer;
use bytes::{Buf, BufMut, BytesMut};
use mareedb_api::v1;
use prost::Message;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

const FRAME_HEADER: usize = 9;
/// Frames that a client may get are no longer: it has not asked for longer ones.
const FRAME_MAX: usize = 16 << 10;
/// Data received is acknowledged once so much of it is.
const OWED_MAX: u32 = 32 << 10;
/// Kinds of answers that are remembered: a date in the headers makes a new one each second.
const KNOWN_MAX: usize = 64;
/// The part of a key that numbers take.
const DIGITS: usize = 8;
const NUMBERS: u64 = 100_000_000;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}
mod flag {
    /// Of DATA and HEADERS.
    pub const END_STREAM: u8 = 1;
    /// Of SETTINGS and PING.
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 32;
}

/// A connection's state, between bytes that came and bytes that are to go.
pub struct Wire {
    /// To be written.
    pub out: BytesMut,
    input: BytesMut,
    headers: Vec<u8>,
    /// A message as gRPC frames it, with room for the number of the key at `digits`.
    body: Vec<u8>,
    digits: usize,
    /// When each call from stream `first` on began, until it is answered.
    flying: VecDeque<Option<Instant>>,
    first: u32,
    outstanding: usize,
    streams_max: usize,
    /// Bytes of data that the server still takes.
    window: i64,
    owed: u32,
    going_away: bool,
    known: HashMap<Vec<u8>, Answer>,
}

impl Wire {
    /// A new connection to `addr`, which puts `value` with `timeout_ms`.
    ///
    /// # Errors
    /// The value does not fit one frame.
    pub fn new(addr: SocketAddr, value: &[u8], timeout_ms: u64) -> Result<Wire, String> {
        let mut encoder = loona_hpack::Encoder::new();
        let authority = addr.to_string();
        let fields: [(&[u8], &[u8]); 6] = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/mareedb.v1.Kv/Put"),
            (b":authority", authority.as_bytes()),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ];
        // A field that the encoder keeps is shorter from the second time on: it stands in the table by then.
        let first = encoder.encode(fields);
        let headers = encoder.encode(fields);
        let (body, digits) = body(value, timeout_ms);
        if body.len() > FRAME_MAX {
            return Err(format!(
                "a request of {} bytes does not fit one frame of {FRAME_MAX}",
                body.len()
            ));
        }
        let mut wire = Wire {
            out: BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]),
            input: BytesMut::new(),
            headers: first,
            body,
            digits,
            flying: VecDeque::new(),
            first: 1,
            outstanding: 0,
            streams_max: usize::MAX,
            window: 65_535,
            owed: 0,
            going_away: false,
            known: HashMap::new(),
        };
        wire.frame(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]);
        // The table is filled by the first request, which nobody counts: it is the look whether the server is there.
        wire.put(0, Instant::now());
        wire.headers = headers;
        Ok(wire)
    }

    /// Calls without an answer.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// When the oldest call without an answer began.
    pub fn oldest(&self) -> Option<Instant> {
        self.flying.front().copied().flatten()
    }

    /// Whether another call may begin now, as far as the server lets it.
    pub fn open(&self) -> bool {
        !self.going_away
            && self.outstanding < self.streams_max
            && self.window >= self.body.len() as i64
    }

    /// Whether the connection takes no more calls, for good.
    pub fn spent(&self) -> bool {
        self.going_away || self.next() > u32::MAX / 4
    }

    fn next(&self) -> u32 {
        self.first + 2 * u32::try_from(self.flying.len()).expect("bounded by streams")
    }

    /// Begins a call: puts the key with this number.
    pub fn put(&mut self, number: u64, now: Instant) {
        let digits = format!("{:0DIGITS$}", number % NUMBERS);
        self.body[self.digits..self.digits + DIGITS].copy_from_slice(digits.as_bytes());
        let stream = self.next();
        let (headers, body) = (
            std::mem::take(&mut self.headers),
            std::mem::take(&mut self.body),
        );
        self.frame(kind::HEADERS, flag::END_HEADERS, stream, &headers);
        self.frame(kind::DATA, flag::END_STREAM, stream, &body);
        self.window -= body.len() as i64;
        (self.headers, self.body) = (headers, body);
        self.flying.push_back(Some(now));
        self.outstanding += 1;
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.out.put_uint(payload.len() as u64, 3);
        self.out.put_u8(kind);
        self.out.put_u8(flags);
        self.out.put_u32(stream);
        self.out.put_slice(payload);
    }

    /// Takes bytes that came; `ended` hears of each call that has ended, and when it began.
    ///
    /// # Errors
    /// The server breaks the protocol, or does what this half of it does not know; the connection is of no use any more.
    pub fn take(
        &mut self,
        bytes: &[u8],
        mut ended: impl FnMut(Instant, Answer),
    ) -> Result<(), String> {
        self.input.extend_from_slice(bytes);
        while self.input.len() >= FRAME_HEADER {
            let len = usize::try_from((&self.input[..3]).get_uint(3)).expect("three bytes");
            if len > FRAME_MAX {
                return Err(format!("a frame of {len} bytes"));
            }
            if self.input.len() < FRAME_HEADER + len {
                break;
            }
            let mut payload = self.input.split_to(FRAME_HEADER + len);
            let (kind, flags) = (payload[3], payload[4]);
            let stream = (&payload[5..9]).get_u32() & 0x7fff_ffff;
            payload.advance(FRAME_HEADER);
            self.handle(kind, flags, stream, &payload, &mut ended)?;
        }
        Ok(())
    }

    fn handle(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        ended: &mut impl FnMut(Instant, Answer),
    ) -> Result<(), String> {
        match kind {
            kind::DATA => {
                self.owed += u32::try_from(payload.len()).expect("a frame is short");
                if self.owed >= OWED_MAX {
                    let owed = std::mem::take(&mut self.owed).to_be_bytes();
                    self.frame(kind::WINDOW_UPDATE, 0, 0, &owed);
                }
                if flags & flag::END_STREAM != 0 {
                    self.end(stream, Answer::Other("no trailers".into()), ended);
                }
            }
            kind::HEADERS if flags & flag::END_HEADERS == 0 => {
                return Err("headers in several frames".into());
            }
            // Headers that do not end the stream are those of a success; its trailers say how it ended.
            kind::HEADERS if flags & flag::END_STREAM != 0 => {
                let answer = self.answer(unpadded(flags, payload)?);
                self.end(stream, answer, ended);
            }
            kind::RST_STREAM => self.end(stream, Answer::Other("stream reset".into()), ended),
            kind::SETTINGS if flags & flag::ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    let value = (&setting[2..]).get_u32();
                    if setting[..2] == [0, 3] {
                        self.streams_max = usize::try_from(value).unwrap_or(usize::MAX);
                    }
                    if setting[..2] == [0, 4] && (value as usize) < self.body.len() {
                        return Err(format!("streams take {value} bytes only"));
                    }
                }
                self.frame(kind::SETTINGS, flag::ACK, 0, &[]);
            }
            kind::PING if flags & flag::ACK == 0 => self.frame(kind::PING, flag::ACK, 0, payload),
            kind::GOAWAY => self.going_away = true,
            kind::WINDOW_UPDATE if stream == 0 && payload.len() == 4 => {
                let mut payload = payload;
                self.window += i64::from(payload.get_u32() & 0x7fff_ffff);
            }
            _ => {}
        }
        Ok(())
    }

    fn answer(&mut self, block: &[u8]) -> Answer {
        if let Some(answer) = self.known.get(block) {
            return answer.clone();
        }
        let answer = Answer::decode(block);
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(block.to_vec(), answer.clone());
        answer
    }

    fn end(&mut self, stream: u32, answer: Answer, ended: &mut impl FnMut(Instant, Answer)) {
        // A stream that has ended may still be reset.
        let at = stream.checked_sub(self.first).map(|past| past / 2);
        let at = at.and_then(|at| self.flying.get_mut(at as usize));
        let Some(began) = at.and_then(Option::take) else {
            return;
        };
        self.outstanding -= 1;
        if stream != 1 {
            ended(began, answer);
        }
        while self.flying.front().is_some_and(Option::is_none) {
            self.flying.pop_front();
            self.first += 2;
        }
    }

    /// The connection is lost, and with it all calls without an answer.
    pub fn lose(&mut self, mut ended: impl FnMut(Instant, Answer)) {
        self.going_away = true;
        self.outstanding = 0;
        for (at, began) in self.flying.drain(..).enumerate() {
            if let Some(began) = began.filter(|_| at > 0 || self.first > 1) {
                ended(began, Answer::Other("connection lost".into()));
            }
        }
    }
}

/// A put as gRPC carries it (not compressed, its length, itself), and where the number of its key stands.
fn body(value: &[u8], timeout_ms: u64) -> (Vec<u8>, usize) {
    let prefix = b"key-";
    let key = [&prefix[..], &[b'#'; DIGITS]].concat();
    let request = v1::PutRequest {
        key: key.clone().into(),
        value: value.to_vec().into(),
        timeout_ms,
        ..v1::PutRequest::default()
    };
    let mut body = vec![0];
    body.put_u32(u32::try_from(request.encoded_len()).unwrap_or(u32::MAX));
    request.encode(&mut body).expect("a vector grows");
    let at = body.windows(key.len()).position(|part| part == key);
    (body, at.expect("the key is in it") + prefix.len())
}

fn unpadded(flags: u8, mut payload: &[u8]) -> Result<&[u8], String> {
    let short = || "a short frame of headers".to_owned();
    if flags & flag::PADDED != 0 {
        let (padding, rest) = payload.split_first().ok_or_else(short)?;
        let len = rest.len().checked_sub(usize::from(*padding));
        payload = &rest[..len.ok_or_else(short)?];
    }
    if flags & flag::PRIORITY != 0 {
        payload = payload.get(5..).ok_or_else(short)?;
    }
    Ok(payload)
}

#[cfg(test)]
mod tests;
