//! As much of IPv4 and TCP as the switch has to know: who a packet is for, and how a connection is reset.

use std::net::Ipv4Addr;

const TCP: u8 = 6;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const HEADERS: usize = 40;

/// Source and destination of a whole IPv4 packet; `None` for anything else.
pub(super) fn ends(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let at = |from: usize| {
        Ipv4Addr::new(
            header[from],
            header[from + 1],
            header[from + 2],
            header[from + 3],
        )
    };
    (header[0] >> 4 == 4).then(|| (at(12), at(16)))
}

/// The TCP header of a packet.
fn tcp(packet: &[u8]) -> Option<&[u8; 20]> {
    ends(packet)?;
    let words = usize::from(packet[0] & 0x0f);
    (packet[9] == TCP).then(|| packet.get(words * 4..)?.first_chunk())?
}

/// Whether it asks for a connection.
pub(super) fn opens(packet: &[u8]) -> bool {
    tcp(packet).is_some_and(|tcp| tcp[13] & (SYN | ACK) == SYN)
}

/// Resets for the receiver and for the sender of a packet of an established connection: each looks as if the other end had sent it.
pub(super) fn resets(packet: &[u8]) -> Option<[Vec<u8>; 2]> {
    let tcp = tcp(packet)?;
    if tcp[13] & (SYN | RST) != 0 || tcp[13] & ACK == 0 {
        return None;
    }
    let (source, destination) = ends(packet)?;
    let ports: [u8; 4] = *tcp.first_chunk()?;
    let back = [ports[2], ports[3], ports[0], ports[1]];
    let (seq, ack) = (&tcp[4..8], &tcp[8..12]);
    Some([
        reset(source, destination, ports, seq, ack),
        // What the receiver would say next is what the sender has acknowledged.
        reset(destination, source, back, ack, seq),
    ])
}

/// The answer of a closed port to a SYN.
pub(super) fn refusal(packet: &[u8]) -> Option<Vec<u8>> {
    if !opens(packet) {
        return None;
    }
    let tcp = tcp(packet)?;
    let (source, destination) = ends(packet)?;
    let seq = u32::from_be_bytes(*tcp[4..].first_chunk()?);
    let acknowledged = seq.wrapping_add(1).to_be_bytes();
    let back = [tcp[2], tcp[3], tcp[0], tcp[1]];
    Some(reset(destination, source, back, &[0; 4], &acknowledged))
}

fn reset(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ports: [u8; 4],
    seq: &[u8],
    ack: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0u8; HEADERS];
    packet[0] = 0x45;
    packet[3] = 40;
    packet[8] = 64;
    packet[9] = TCP;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let sum = checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..24].copy_from_slice(&ports);
    packet[24..28].copy_from_slice(seq);
    packet[28..32].copy_from_slice(ack);
    packet[32] = 5 << 4;
    packet[33] = RST | ACK;
    let pseudo = [0, TCP, 0, 20];
    let sum = checksum(&[&packet[12..20], &pseudo, &packet[20..]]);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The checksum of RFC 1071 over parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = parts
        .iter()
        .flat_map(|part| part.chunks_exact(2))
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded above")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(flags: u8) -> Vec<u8> {
        let [a, b] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        let mut packet = reset(a, b, [1, 2, 3, 4], &[0, 0, 0, 7], &[0, 0, 0, 9]);
        packet[33] = flags;
        packet
    }

    #[test]
    fn a_connection_is_reset_at_both_ends_with_their_own_numbers() {
        let [forth, back] = resets(&segment(ACK)).unwrap();
        assert_eq!(ends(&forth), ends(&segment(ACK)));
        assert_eq!(&forth[24..28], &[0, 0, 0, 7]);
        let (a, b) = ends(&forth).unwrap();
        assert_eq!(ends(&back), Some((b, a)));
        assert_eq!(&back[20..24], &[3, 4, 1, 2]);
        assert_eq!(&back[24..28], &[0, 0, 0, 9]);
        // The sum over a part that holds its own checksum is zero.
        assert_eq!(checksum(&[&forth[..20]]), 0);
    }

    #[test]
    fn what_opens_a_connection_is_refused_and_never_reset() {
        assert!(opens(&segment(SYN)));
        assert_eq!(resets(&segment(SYN)), None);
        assert_eq!(refusal(&segment(ACK)), None);
        let answer = refusal(&segment(SYN)).unwrap();
        assert_eq!(&answer[28..32], &[0, 0, 0, 8]);
    }

    #[test]
    fn what_is_no_packet_is_nobodys() {
        assert_eq!(ends(&[]), None);
        assert_eq!(ends(&[0x60; 40]), None);
        assert_eq!(resets(&[0x4f; 30]), None);
    }
}
