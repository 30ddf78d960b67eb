use super::*;

fn wire() -> Wire {
    Wire::new("127.0.0.1:7001".parse().unwrap(), b"value", 500).unwrap()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_uint(payload.len() as u64, 3);
    bytes.put_u8(kind);
    bytes.put_u8(flags);
    bytes.put_u32(stream);
    bytes.put_slice(payload);
    bytes
}

fn status(code: &str) -> Vec<u8> {
    loona_hpack::Encoder::new().encode([(&b"grpc-status"[..], code.as_bytes())])
}

fn ending(stream: u32, code: &str) -> Vec<u8> {
    let flags = flag::END_HEADERS | flag::END_STREAM;
    frame(kind::HEADERS, flags, stream, &status(code))
}

fn taken(wire: &mut Wire, bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    wire.take(bytes, |_, answer| answers.push(answer)).unwrap();
    answers
}

#[test]
fn a_message_begins_with_its_length_and_has_room_for_the_number() {
    let (body, digits) = body(b"value", 500);
    assert_eq!(body[..4], [0, 0, 0, 0]);
    assert_eq!(usize::from(body[4]), body.len() - 5);
    assert_eq!(body[digits..digits + DIGITS], [b'#'; DIGITS]);
    let message = v1::PutRequest::decode(&body[5..]).unwrap();
    assert_eq!(
        (&message.value[..], message.timeout_ms),
        (&b"value"[..], 500)
    );
}

#[test]
fn answers_find_their_calls_in_any_order_and_any_pieces() {
    let mut wire = wire();
    for number in 0..3 {
        wire.put(number, Instant::now());
    }
    assert_eq!(wire.outstanding(), 4);
    let bytes = [ending(7, "0"), ending(1, "0"), ending(3, "14")].concat();
    let mut answers = Vec::new();
    for byte in bytes {
        answers.extend(taken(&mut wire, &[byte]));
    }
    // The first call of a connection is nobody's.
    assert_eq!(
        answers,
        [Answer::Accepted, Answer::Other("Unavailable".into())]
    );
    assert_eq!(wire.outstanding(), 1);
    // What is reset after its end, or was never begun, is nothing.
    let code = [0; 4];
    assert_eq!(taken(&mut wire, &frame(kind::RST_STREAM, 0, 3, &code)), []);
    assert_eq!(taken(&mut wire, &frame(kind::RST_STREAM, 0, 99, &code)), []);
    assert_eq!(
        taken(&mut wire, &frame(kind::RST_STREAM, 0, 5, &code)).len(),
        1
    );
    assert_eq!((wire.outstanding(), wire.oldest()), (0, None));
}

#[test]
fn the_server_bounds_what_is_begun() {
    let mut wire = wire();
    wire.out.clear();
    assert!(wire.open());
    assert_eq!(
        taken(&mut wire, &frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1])),
        []
    );
    assert!(!wire.open(), "one stream is all that it takes");
    assert_eq!(wire.out[..], frame(kind::SETTINGS, flag::ACK, 0, &[]));
    taken(&mut wire, &ending(1, "0"));
    assert!(wire.open());
    let before = wire.window;
    wire.window = 3;
    assert!(!wire.open());
    taken(
        &mut wire,
        &frame(kind::WINDOW_UPDATE, 0, 0, &100_000u32.to_be_bytes()),
    );
    assert_eq!(wire.window, 100_003);
    assert!(wire.open() && before < 65_535);
    taken(&mut wire, &frame(kind::GOAWAY, 0, 0, &[0; 8]));
    assert!(!wire.open() && wire.spent());
}

#[test]
fn data_is_acknowledged_and_pings_are_answered() {
    let mut wire = wire();
    wire.out.clear();
    let data = vec![0; FRAME_MAX];
    taken(&mut wire, &frame(kind::DATA, 0, 1, &data));
    assert!(wire.out.is_empty());
    taken(&mut wire, &frame(kind::DATA, 0, 1, &data));
    assert_eq!(
        wire.out[..],
        frame(kind::WINDOW_UPDATE, 0, 0, &OWED_MAX.to_be_bytes())
    );
    wire.out.clear();
    taken(&mut wire, &frame(kind::PING, 0, 0, b"12345678"));
    assert_eq!(wire.out[..], frame(kind::PING, flag::ACK, 0, b"12345678"));
}

#[test]
fn a_lost_connection_answers_all_and_a_broken_one_is_an_error() {
    let mut wire = wire();
    wire.put(1, Instant::now());
    let mut lost = 0;
    wire.lose(|_, _| lost += 1);
    assert_eq!((lost, wire.outstanding()), (1, 0));
    let nobody = |_: Instant, _: Answer| {};
    assert!(self::wire().take(&[255; 20], nobody).is_err());
    let bare = frame(kind::HEADERS, flag::END_STREAM, 1, &status("0"));
    assert!(self::wire().take(&bare, nobody).is_err());
    let padded = flag::END_STREAM | flag::END_HEADERS | flag::PADDED;
    assert!(
        self::wire()
            .take(&frame(kind::HEADERS, padded, 1, &[9, 1]), nobody)
            .is_err()
    );
}
