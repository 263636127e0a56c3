//! Properties of the way from a stream of bytes to requests, over streams made from seeds.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::buffers::ReceiveBuffer;
use super::protocol::{RequestHead, Style, command, command_flag, encode_request};
use super::request::{Parsed, parse};
use crate::limits::REQUEST_BYTES_MAX;

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// Any request, and the payload that follows its head.
fn any_request(random: &mut StdRng, style: Style, cookie: u64) -> (RequestHead, Vec<u8>) {
    let any_command = if random.random_bool(0.9) { random.random_range(0..8) } else { random.random() };
    let mut head = RequestHead {
        flags: random.random(),
        command: any_command,
        cookie,
        offset: random.random(),
        length: u64::from(random.random::<u32>()),
    };
    let carries = match style {
        Style::Simple | Style::Structured => head.command == command::WRITE,
        Style::Extended => head.flags & command_flag::PAYLOAD_LEN != 0,
    };
    if !carries {
        return (head, Vec::new());
    }
    let longest = if random.random_bool(0.05) { 900_000 } else { 9_000 };
    head.length = random.random_range(0..longest);
    (head, (0..head.length).map(|_| random.random()).collect())
}

/// Feeds `stream` in pieces of any length through the receive buffer, as a connection does, and returns what is parsed.
fn receive(random: &mut StdRng, style: Style, mut stream: &[u8]) -> Vec<(RequestHead, Vec<u8>)> {
    let mut buffer = ReceiveBuffer::new();
    let mut requests = Vec::new();
    while !stream.is_empty() {
        let space = buffer.space();
        let longest = space.len().min(stream.len());
        let count = if random.random_bool(0.3) { longest } else { random.random_range(1..=longest.min(100_000)) };
        let (piece, rest) = stream.split_at(count);
        space[..count].copy_from_slice(piece);
        buffer.received(count);
        stream = rest;
        loop {
            match parse(style, buffer.filled()) {
                Parsed::Whole { head, payload } => {
                    let end = payload.end;
                    requests.push((head, buffer.filled()[payload].to_vec()));
                    buffer.consume(end);
                }
                Parsed::Part { needed } => {
                    assert!(needed > buffer.filled().len(), "a part that is whole");
                    buffer.expect(needed);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(buffer.filled().is_empty(), "something is left over");
    requests
}

#[test]
fn requests_are_the_same_however_the_stream_is_cut() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let style = STYLES[seed as usize % STYLES.len()];
        let count = random.random_range(1..60);
        let requests: Vec<_> = (0..count).map(|cookie| any_request(&mut random, style, cookie)).collect();
        let mut stream = Vec::new();
        for (head, payload) in &requests {
            encode_request(style, head, &mut stream);
            stream.extend_from_slice(payload);
        }
        let received = receive(&mut random, style, &stream);
        assert!(received == requests, "seed {seed}, {style:?}");
    }
}

#[test]
fn any_bytes_parse_to_something_within_bounds() {
    for seed in 0..20_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let style = STYLES[seed as usize % STYLES.len()];
        let (head, payload) = any_request(&mut random, style, seed);
        let mut bytes = Vec::new();
        encode_request(style, &head, &mut bytes);
        bytes.extend_from_slice(&payload[..payload.len().min(64)]);
        for _ in 0..random.random_range(0..4) {
            let place = random.random_range(0..bytes.len());
            bytes[place] = random.random();
        }
        match parse(style, &bytes) {
            Parsed::Whole { payload, .. } => assert!(payload.end <= bytes.len()),
            Parsed::Part { needed } => {
                let longest = style.request_head_bytes() as u64 + REQUEST_BYTES_MAX;
                assert!(needed > bytes.len() && needed as u64 <= longest);
            }
            Parsed::TooLong { payload_bytes, .. } => assert!(payload_bytes > REQUEST_BYTES_MAX),
            Parsed::Garbage { reason } => assert!(!reason.is_empty()),
        }
    }
}
