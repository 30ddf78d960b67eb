//! What is sent: bytes that say which message they are, so that a receiver notices one that is lost, repeated or torn.

/// The head of a message: eight words.
const HEAD_BYTES: usize = 64;
/// No message is shorter.
pub(crate) const BYTES_MIN: usize = HEAD_BYTES;

/// Odd, with well mixed bits; one a word.
const FACTORS: [u64; 7] = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0xd6e8_feb8_6659_fd93,
    0xa076_1d64_78bd_642f,
    0xe703_7ed1_a0b4_28db,
    0x8ebc_6af0_9c88_c6e3,
];

/// Where in a run a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before the measurement.
    Warm = 1,
    /// Measured.
    Measured = 2,
    /// The last one.
    End = 3,
}

/// A message that is filled again and again.
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(crate) fn new(bytes: usize) -> Message {
        assert!(bytes >= BYTES_MIN, "a message has at least its head");
        let pattern = (0..bytes).map(|at| at.to_le_bytes()[0] ^ 0x5a);
        Message {
            bytes: pattern.collect(),
        }
    }

    /// Makes it the message with this number.
    pub(crate) fn stamp(&mut self, number: u64, phase: Phase) -> &[u8] {
        let mut words = [number, phase as u64, 0, 0, 0, 0, 0, 0];
        for at in 2..7 {
            words[at] = number.wrapping_mul(FACTORS[at]);
        }
        words[7] = checksum(&words);
        for (word, place) in words.iter().zip(self.bytes.chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        if let Some(at) = end_of(self.bytes.len()) {
            self.bytes[at..].copy_from_slice(&(!number).to_le_bytes());
        }
        &self.bytes
    }
}

/// Where a message that is longer than its head repeats its number.
fn end_of(bytes: usize) -> Option<usize> {
    (bytes >= HEAD_BYTES + 8).then(|| bytes - 8)
}

fn checksum(words: &[u64; 8]) -> u64 {
    words[..7]
        .iter()
        .zip(FACTORS)
        .fold(0, |sum, (word, factor)| {
            sum ^ word.wrapping_mul(factor).rotate_left(17)
        })
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Whether this is the message with that number, whole.
///
/// # Errors
/// It is not.
pub(crate) fn check(bytes: &[u8], length: usize, number: u64) -> Result<Phase, String> {
    if bytes.len() != length {
        return Err(format!("{} bytes, {length} expected", bytes.len()));
    }
    let mut words = [0; 8];
    for (at, place) in words.iter_mut().enumerate() {
        *place = word(bytes, 8 * at);
    }
    let end = end_of(length).map_or(number, |at| !word(bytes, at));
    if words[0] != number || end != number || words[7] != checksum(&words) {
        return Err(format!(
            "message {} (at its end {end}) where {number} was expected, or a wrong checksum",
            words[0]
        ));
    }
    match words[1] {
        1 => Ok(Phase::Warm),
        2 => Ok(Phase::Measured),
        3 => Ok(Phase::End),
        other => Err(format!("message {number} of no phase: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_number_length_or_byte_is_noticed() {
        for bytes in [64, 1024] {
            let mut message = Message::new(bytes);
            let sent = message.stamp(7, Phase::Measured).to_vec();
            assert_eq!(check(&sent, bytes, 7), Ok(Phase::Measured));
            assert!(check(&sent, bytes, 8).is_err());
            assert!(check(&sent[..bytes - 1], bytes, 7).is_err());
            for at in (0..HEAD_BYTES).chain(bytes - 8..bytes) {
                let mut torn = sent.clone();
                torn[at] ^= 1;
                assert!(check(&torn, bytes, 7).is_err(), "byte {at}");
            }
        }
    }
}
