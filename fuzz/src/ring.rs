//! A ring with any words and bytes gives records or says that it is corrupt; whole records come as they were put; a manifest
//! of any text is one or an error; a status board shows the newest whole record or nothing.

use mareedb_ipc::CELL_BYTES_MAX;
use mareedb_ipc::testing::{parse_inheritance, read_from_slots, receive_from_image};
use mareedb_ipc::wire::{decode, encode};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

const CAPACITY: usize = 4096;

#[derive(Serialize, Deserialize)]
enum Input {
    /// Records with their checksums from a head on; the byte beside each says what is wrong with it.
    Records(u64, Vec<(Vec<u8>, u8)>),
    /// Any words.
    Words(u64, u64, Vec<u8>),
    /// The encoding of a manifest, which goes as hexadecimal digits.
    Manifest(Vec<u8>),
    /// Any text.
    Text(String),
    /// The two slots of a cell of a status board with their checksums: sequence, payload, what is wrong with it.
    Cell([(u64, Vec<u8>, u8); 2]),
    /// Slots of any words and bytes.
    Slots([(u64, Vec<u8>); 2]),
}

/// Writes at a ring's position.
fn put(image: &mut [u8], position: u64, bytes: &[u8]) {
    for (at, byte) in (position..).zip(bytes) {
        let place = usize::try_from(at % CAPACITY as u64).expect("within the ring");
        image[place] = *byte;
    }
}

fn records(head: u64, records: &[(Vec<u8>, u8)]) {
    let head = head & !7 & ((1 << 62) - 1);
    let mut image = vec![0xA5; CAPACITY];
    let mut tail = head;
    let mut whole = head < (1 << 62) - CAPACITY as u64;
    for (payload, fault) in records {
        let mut position = tail;
        let mut len = u32::try_from(payload.len()).expect("inputs are small");
        let mut bytes = payload.clone();
        match fault {
            1 => position = position.wrapping_sub(CAPACITY as u64),
            2 => len = len.wrapping_sub(1),
            3 => len = len.wrapping_add(1 << 20),
            _ => {}
        }
        let mut covered = position.to_le_bytes().to_vec();
        covered.extend_from_slice(&len.to_le_bytes());
        // As `ring::checksum` does it: the sum begins with the position and the length.
        #[allow(clippy::cast_possible_truncation, reason = "both halves are meant")]
        let folded = (position >> 3) as u32 ^ (position >> 35) as u32;
        let crc = crc32c::crc32c_append(folded ^ len.rotate_left(16) ^ 0x4D41_5245, payload);
        if *fault == 4 && !bytes.is_empty() {
            bytes[0] ^= 1;
        }
        put(&mut image, tail, &covered);
        put(&mut image, tail.wrapping_add(12), &crc.to_le_bytes());
        put(&mut image, tail.wrapping_add(16), &bytes);
        let takes = (16 + payload.len()).next_multiple_of(8) as u64;
        whole &= matches!(fault, 0 | 6..) && payload.len() <= CAPACITY / 4 - 16;
        tail = tail.wrapping_add(if *fault == 5 { takes - 8 } else { takes });
    }
    whole &= tail.wrapping_sub(head) <= CAPACITY as u64;
    let received = receive_from_image(tail, head, &image);
    if whole {
        let received = received.expect("the ring is whole");
        assert_eq!(received.len(), records.len());
        for (got, (put, _)) in received.iter().zip(records) {
            assert_eq!(got[..], put[..]);
        }
    }
}

fn cell(slots: &[(u64, Vec<u8>, u8); 2]) {
    let images = slots.each_ref().map(|(sequence, payload, fault)| {
        let mut len = u32::try_from(payload.len()).expect("inputs are small");
        let mut crc = crc32c::crc32c_append(crc32c::crc32c(&sequence.to_le_bytes()), payload);
        match fault {
            1 => len = len.wrapping_add(1 << 20),
            2 => crc ^= 1,
            _ => {}
        }
        [&len.to_le_bytes()[..], &crc.to_le_bytes(), &payload[..]].concat()
    });
    let whole = |(sequence, payload, fault): &&(u64, Vec<u8>, u8)| {
        *sequence != 0 && !matches!(fault, 1 | 2) && payload.len() <= CELL_BYTES_MAX
    };
    let mut newest: Vec<_> = slots.iter().collect();
    newest.sort_by_key(|(sequence, ..)| Reverse(*sequence));
    let newest = newest.into_iter().find(whole);
    let expected = newest.and_then(|(_, payload, _)| decode::<String>(payload).ok());
    let shown = read_from_slots([(slots[0].0, &images[0]), (slots[1].0, &images[1])]);
    // Two slots never have one number.
    if slots[0].0 != slots[1].0 {
        assert_eq!(shown, expected);
    }
}

pub fn run(bytes: &[u8]) {
    match decode::<Input>(bytes) {
        Ok(Input::Records(head, list)) => records(head, &list),
        Ok(Input::Words(tail, head, data)) => {
            let _ = receive_from_image(tail, head, &data);
            // Words near each other, as a torn ring has them.
            let _ = receive_from_image(head.wrapping_add(tail % 5000), head, &data);
        }
        Ok(Input::Manifest(bytes)) => {
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = parse_inheritance(&text);
        }
        Ok(Input::Text(text)) => {
            let _ = parse_inheritance(&text);
        }
        Ok(Input::Cell(slots)) => cell(&slots),
        Ok(Input::Slots([first, second])) => {
            let _ = read_from_slots([(first.0, &first.1), (second.0, &second.1)]);
        }
        Err(_) => {}
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let record = |len: usize| (vec![7; len], 0);
    let mut inputs = vec![
        Input::Records(0, vec![record(0), record(5), record(1008)]),
        Input::Records(4088, vec![record(9), record(700), record(100)]),
        Input::Words(16, 0, vec![0; 16]),
        Input::Text("0g".into()),
    ];
    for fault in 1..6 {
        inputs.push(Input::Records(4096, vec![record(40), (vec![1; 20], fault)]));
    }
    let slot = |sequence: u64, fault: u8| (sequence, encode(&format!("words {sequence}")), fault);
    for (sequences, faults) in [
        ([2, 1], [0, 0]),
        ([2, 3], [0, 0]),
        ([2, 3], [0, 1]),
        ([4, 3], [2, 0]),
        ([0, 1], [0, 2]),
        ([u64::MAX - 1, u64::MAX], [0, 0]),
    ] {
        let [first, second] = [0usize, 1].map(|at| slot(sequences[at], faults[at]));
        inputs.push(Input::Cell([first, second]));
    }
    inputs.push(Input::Slots([(2, vec![0; 16]), (1, vec![0xff; 16])]));
    let node = mareedb_ipc::testing::NodeInProcess::small("{}");
    for role in mareedb_ipc::Role::DAEMONS {
        let (_, text) = node.memory().plan(role, &Default::default()).env;
        let bytes = (0..text.len())
            .step_by(2)
            .filter_map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok());
        inputs.push(Input::Manifest(bytes.collect()));
    }
    inputs.iter().map(encode).collect()
}
