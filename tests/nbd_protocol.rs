//! The NBD server against clients that say the wrong thing, too much, too little, or nothing (faults N1 to N7).

#![expect(clippy::unwrap_used, reason = "a test may end where its tools fail")]

#[path = "support/memory_device.rs"]
mod memory_device;
#[path = "support/nbd_fixture.rs"]
mod nbd_fixture;
#[path = "support/raw_client.rs"]
mod raw_client;
#[allow(dead_code, reason = "each test file uses a part of the support")]
#[path = "support/tls_files.rs"]
mod tls_files;

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nbd_fixture::{Fixture, SIZE};
use raw_client::{RawClient, info_data, meta_data};
use varve::error::ErrorKind;
use varve::nbd::protocol::{Put, RequestHead, Style, command, command_flag, option, option_reply};

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];
const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

/// The flag that a write must have.
fn write_flag(style: Style) -> u16 {
    if style == Style::Extended { command_flag::PAYLOAD_LEN } else { 0 }
}

/// A client that behaves is served.
fn assert_serves(fixture: &Fixture) {
    let mut client = RawClient::enter(&fixture.address(), "read-only", Style::Structured);
    client.request(command::READ, 0, 9, 4096, 512, &[]);
    let reply = client.reply(512);
    assert_eq!((reply.cookie, reply.errno, reply.data.len()), (9, 0, 512));
}

fn raw(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn options_that_make_no_sense_are_answered_and_the_handshake_goes_on() {
    use option_reply::*;
    let fixture = Fixture::new();
    let huge = &[0xff; 4][..];
    let name = &[0, 0, 0, 4, b'd', b'i', b's', b'k'][..];
    let cases: Vec<(&str, u32, Vec<u8>, u32)> = vec![
        ("option 0", 0, vec![], ERR_UNSUP),
        ("withdrawn option 4", 4, vec![], ERR_UNSUP),
        ("option 12", 12, vec![1, 2, 3], ERR_UNSUP),
        ("option 2^32-1", u32::MAX, vec![], ERR_UNSUP),
        ("option one byte too long", option::INFO, vec![0; (16 << 10) + 1], ERR_TOO_BIG),
        ("unknown option of 1 MiB", 99, vec![0; 1 << 20], ERR_TOO_BIG),
        ("LIST with data", option::LIST, vec![0], ERR_INVALID),
        ("STRUCTURED_REPLY with data", option::STRUCTURED_REPLY, vec![0], ERR_INVALID),
        ("EXTENDED_HEADERS with data", option::EXTENDED_HEADERS, vec![0], ERR_INVALID),
        ("STARTTLS without TLS", option::STARTTLS, vec![], ERR_POLICY),
        ("STARTTLS with data", option::STARTTLS, vec![1], ERR_POLICY),
        ("INFO without data", option::INFO, vec![], ERR_INVALID),
        ("INFO with half a length", option::INFO, vec![0, 0], ERR_INVALID),
        ("INFO with a name of 2^32-1", option::INFO, raw(&[huge, b"disk"]), ERR_INVALID),
        ("INFO without a count", option::INFO, name.to_vec(), ERR_INVALID),
        ("INFO with too high a count", option::INFO, raw(&[name, &[0xff, 0xff, 0, 3]]), ERR_INVALID),
        ("INFO with something behind", option::INFO, raw(&[name, &[0, 0, 7]]), ERR_INVALID),
        ("INFO with a name of 4096", option::INFO, info_data(&[b'a'; 4096], &[]), ERR_UNKNOWN),
        ("INFO with a name of 4097", option::INFO, info_data(&[b'a'; 4097], &[]), ERR_UNKNOWN),
        ("GO to nowhere", option::GO, info_data(b"nowhere", &[]), ERR_UNKNOWN),
        ("GO to the default export", option::GO, info_data(b"", &[]), ERR_UNKNOWN),
        ("GO up the tree", option::GO, info_data(b"../../etc/passwd", &[]), ERR_UNKNOWN),
        ("GO with NUL", option::GO, info_data(b"disk\0", &[]), ERR_UNKNOWN),
        ("GO with bad UTF-8", option::GO, info_data(b"disk\xff", &[]), ERR_UNKNOWN),
        ("GO to what another host owns", option::GO, info_data(b"busy", &[]), ERR_POLICY),
        ("GO with a count of 65535", option::GO, raw(&[name, &[0xff, 0xff]]), ERR_INVALID),
        ("LIST_META without data", option::LIST_META_CONTEXT, vec![], ERR_INVALID),
        ("LIST_META with 2^32-1 queries", option::LIST_META_CONTEXT, raw(&[name, huge]), ERR_INVALID),
        ("LIST_META with a query of 2^32-1", option::LIST_META_CONTEXT, raw(&[name, &[0, 0, 0, 1], huge]), ERR_INVALID),
        ("LIST_META without a colon", option::LIST_META_CONTEXT, meta_data(b"disk", &["allocation"]), ERR_INVALID),
        ("LIST_META of a strange namespace", option::LIST_META_CONTEXT, meta_data(b"disk", &["x-y:z"]), ACK),
        ("SET_META too early", option::SET_META_CONTEXT, meta_data(b"disk", &["base:allocation"]), ERR_INVALID),
    ];
    for (what, option, data, expected) in cases {
        let mut client = RawClient::greet(&fixture.address());
        let replies = client.ask(option, &data);
        assert_eq!(replies.len(), 1, "{what}: {replies:?}");
        assert_eq!(replies[0].0, expected, "{what}: {}", String::from_utf8_lossy(&replies[0].1));
        let list = client.ask(option::LIST, &[]);
        assert_eq!(list.last().map(|reply| reply.0), Some(ACK), "{what}");
        assert!(!list.iter().any(|(_, entry)| entry.ends_with(b"secret")), "{what}");
        client.agree(Style::Structured);
        let replies = client.ask(option::GO, &info_data(b"disk", &[]));
        assert_eq!(replies.last().map(|reply| reply.0), Some(ACK), "{what}");
    }
    fixture.wait_until_left();
}

#[test]
fn a_handshake_that_cannot_go_on_is_closed() {
    let fixture = Fixture::new();
    let option_head = |option: u32, length: u32| {
        let mut bytes = vec![0, 0, 0, 3];
        bytes.put_u64(varve::nbd::protocol::OPTION_MAGIC);
        bytes.put_u32(option);
        bytes.put_u32(length);
        bytes
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("unknown client flags", vec![0, 0, 0, 7]),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("bad magic", raw(&[&[0, 0, 0, 3], &[0x55; 16]])),
        ("an option of 2^32-1", option_head(option::INFO, u32::MAX)),
        ("EXPORT_NAME of 2^32-1", option_head(option::EXPORT_NAME, u32::MAX)),
        ("EXPORT_NAME unknown", raw(&[&option_head(option::EXPORT_NAME, 7), b"nowhere"])),
        ("EXPORT_NAME bad UTF-8", raw(&[&option_head(option::EXPORT_NAME, 1), b"\xff"])),
        ("EXPORT_NAME too long", raw(&[&option_head(option::EXPORT_NAME, 5000), &[b'a'; 5000]])),
        ("LIST without fixed newstyle", raw(&[&[0, 0, 0, 0], &option_head(option::LIST, 0)[4..]])),
        ("half an option, then the end", option_head(option::INFO, 100)),
        ("half a header, then the end", option_head(option::INFO, 0)[..11].to_vec()),
    ];
    for (what, bytes) in cases {
        let mut client = RawClient::connect(&fixture.address());
        client.send(&bytes);
        if what.contains("half") {
            client.end_sending();
        }
        assert!(client.expect_closed().is_empty(), "{what}");
    }
    let mut client = RawClient::greet(&fixture.address());
    assert_eq!(client.ask(option::ABORT, b"ignored"), [(option_reply::ACK, vec![])]);
    assert!(client.expect_closed().is_empty());
    let mut client = RawClient::greet(&fixture.address());
    let mut bytes = Vec::new();
    for _ in 0..300 {
        bytes.extend_from_slice(&option_head(77, 0)[4..]);
    }
    client.send(&bytes);
    client.expect_closed();
    assert_serves(&fixture);
}

#[test]
fn requests_that_make_no_sense_get_their_errno_and_the_connection_goes_on() {
    use command::*;
    use command_flag::{DF, FUA, NO_HOLE, REQ_ONE};
    let fixture = Fixture::new();
    let cases: &[(&str, u16, u16, u64, u64, u32)] = &[
        ("read of 2^32-1", READ, 0, 0, u32::MAX as u64, EINVAL),
        ("read of 32 MiB and 1", READ, 0, 0, (32 << 20) + 1, EINVAL),
        ("read past the end", READ, 0, SIZE - 511, 512, EINVAL),
        ("read beyond the end", READ, 0, SIZE + 4096, 512, EINVAL),
        ("read that wraps around", READ, 0, u64::MAX, 512, EINVAL),
        ("read of nothing", READ, 0, 0, 0, EINVAL),
        ("read with NO_HOLE", READ, NO_HOLE, 0, 512, EINVAL),
        ("read with all flags", READ, u16::MAX, 0, 512, EINVAL),
        ("write past the end", WRITE, 0, SIZE - 511, 512, ENOSPC),
        ("write beyond the end", WRITE, 0, SIZE, 1, ENOSPC),
        ("write that wraps around", WRITE, 0, u64::MAX - 1, 512, ENOSPC),
        ("write of nothing", WRITE, 0, 0, 0, EINVAL),
        ("write with DF", WRITE, DF, 0, 512, EINVAL),
        ("write with an unknown flag", WRITE, 1 << 9, 0, 512, EINVAL),
        ("write of 32 MiB and 1", WRITE, 0, 0, (32 << 20) + 1, EINVAL),
        ("write of 40 MiB past the end", WRITE, 0, SIZE, 40 << 20, EINVAL),
        ("trim past the end", TRIM, 0, SIZE - 1, 2, EINVAL),
        ("trim of 2^32-1", TRIM, 0, 0, u32::MAX as u64, EINVAL),
        ("trim of nothing", TRIM, 0, 0, 0, EINVAL),
        ("trim with NO_HOLE", TRIM, NO_HOLE, 0, 512, EINVAL),
        ("zeroes past the end", WRITE_ZEROES, 0, SIZE - 1, 2, ENOSPC),
        ("zeroes of 2^32-1", WRITE_ZEROES, 0, 0, u32::MAX as u64, ENOSPC),
        ("zeroes that wrap around", WRITE_ZEROES, 0, u64::MAX - 4, u32::MAX as u64, ENOSPC),
        ("zeroes of nothing", WRITE_ZEROES, 0, 0, 0, EINVAL),
        ("zeroes with REQ_ONE", WRITE_ZEROES, REQ_ONE, 0, 512, EINVAL),
        ("flush with DF", FLUSH, DF, 0, 0, EINVAL),
        ("flush with offset and length", FLUSH, 0, u64::MAX, 7, 0),
        ("flush with FUA", FLUSH, FUA, 0, 0, 0),
        ("cache past the end", CACHE, 0, SIZE, 1, EINVAL),
        ("cache of nothing", CACHE, 0, 0, 0, EINVAL),
        ("cache with REQ_ONE", CACHE, REQ_ONE, 0, 512, EINVAL),
        ("block status that was not agreed on", BLOCK_STATUS, 0, 0, 512, EINVAL),
        ("resize", 8, 0, 0, 512, EINVAL),
        ("command 9", 9, 0, 0, 512, EINVAL),
        ("command 65535", u16::MAX, 0, 0, 512, EINVAL),
    ];
    for style in STYLES {
        let mut client = RawClient::enter(&fixture.address(), "disk", style);
        for (cookie, &(what, command, mut flags, offset, length, expected)) in (1u64..).zip(cases) {
            let mut payload = Vec::new();
            if command == WRITE {
                flags |= write_flag(style);
                payload.resize(length as usize, 0xaa);
            }
            if style == Style::Extended && what.contains("all flags") {
                payload.resize(length as usize, 0xaa);
            }
            client.request(command, flags, cookie, offset, length, &payload);
            let reply = client.reply(0);
            assert_eq!((reply.cookie, reply.errno), (cookie, expected), "{style:?}: {what}: {}", reply.message);
            assert_eq!(reply.message.is_empty(), expected == 0 || style == Style::Simple, "{style:?}: {what}");
            client.request(READ, 0, 1 << 40, 1, 3, &[]);
            let reply = client.reply(3);
            assert_eq!((reply.cookie, reply.errno, reply.data), (1 << 40, 0, vec![0; 3]), "{style:?}: {what}");
        }
        client.request(DISC, 0, 0, 0, 0, &[]);
        assert!(client.expect_closed().is_empty());
    }
    assert!(fixture.disk.snapshot().iter().all(|&byte| byte == 0), "nothing that was refused was done");
}

#[test]
fn a_read_only_export_refuses_changes() {
    let fixture = Fixture::new();
    for style in STYLES {
        let mut client = RawClient::enter(&fixture.address(), "read-only", style);
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            let write = command == command::WRITE;
            let payload: &[u8] = if write { &[1; 512] } else { &[] };
            client.request(command, if write { write_flag(style) } else { 0 }, 5, 0, 512, payload);
            assert_eq!(client.reply(0).errno, EPERM, "{style:?} {command}");
        }
    }
}

#[test]
fn a_stream_that_lost_its_step_is_closed_and_nothing_half_is_done() {
    let fixture = Fixture::new();
    for style in STYLES {
        let head_bytes = style.request_head_bytes();
        let enter = || RawClient::enter(&fixture.address(), "disk", style);
        let write = |client: &RawClient| {
            let head =
                RequestHead { flags: write_flag(style), command: command::WRITE, cookie: 1, offset: 0, length: 8192 };
            client.encode(head, &[0xbb; 8192])
        };
        let wrong_magic = if style == Style::Extended { [0x25, 0x60, 0x95, 0x13] } else { [0x21, 0xe4, 0x1c, 0x71] };
        for garbage in [&[0; 64][..], &[0xff; 64], &wrong_magic, b"GET / HTTP/1.1\r\n\r\n"] {
            let mut client = enter();
            client.send(garbage);
            assert!(client.expect_closed().is_empty(), "{style:?}");
        }
        for cut in [1, 4, head_bytes - 1, head_bytes, head_bytes + 1, head_bytes + 8191] {
            let mut client = enter();
            let bytes = write(&client);
            client.send(&bytes[..cut]);
            client.end_sending();
            assert!(client.expect_closed().is_empty(), "{style:?} cut at {cut}");
        }
    }
    let mut client = RawClient::enter(&fixture.address(), "disk", Style::Extended);
    client.request(command::WRITE, command_flag::PAYLOAD_LEN, 1, 0, u64::MAX, &[]);
    assert!(client.expect_closed().is_empty(), "a payload of 2^64-1");
    fixture.wait_until_left();
    assert!(fixture.disk.snapshot().iter().all(|&byte| byte == 0), "half a write was applied");
    assert_serves(&fixture);
}

#[test]
fn a_payload_that_never_comes_and_replies_never_read_harm_nobody_else() {
    let fixture = Fixture::new();
    let mut silent = RawClient::enter(&fixture.address(), "big", Style::Simple);
    silent.request(command::WRITE, 0, 1, 0, 32 << 20, &[1; 100]);
    let mut deaf = Vec::new();
    for slow in [false, true] {
        fixture.exports.devices["big"].slow.store(slow, Ordering::Relaxed);
        let mut client = RawClient::enter(&fixture.address(), "big", Style::Structured);
        client.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        // The server must stop taking requests in long before there are as many as here.
        let mut bytes = Vec::new();
        for cookie in 0..4096 {
            let head = RequestHead { flags: 0, command: command::READ, cookie, offset: 0, length: 32 << 20 };
            bytes.extend(client.encode(head, &[]));
        }
        let stalled = (0..600).any(|_| client.stream.write_all(&bytes).is_err());
        deaf.push((client, stalled));
        assert_serves(&fixture);
    }
    assert!(deaf.iter().all(|(_, stalled)| *stalled), "the server took in requests without end");
    fixture.wait_for(|fixture| fixture.server.connections() == 3);
    drop((deaf, silent));
    fixture.wait_until_left();
}

#[test]
fn what_never_finishes_its_handshake_is_closed_in_time() {
    let limit = Duration::from_secs(5);
    let fixture = Fixture::with(|settings| settings.handshake_time = limit);
    let mut idle: Vec<_> = (0..50).map(|_| RawClient::connect(&fixture.address())).collect();
    let mut half = RawClient::greet(&fixture.address());
    // On a slow machine the time of each may be over before it says anything.
    let _ = half.stream.write_all(&[0x49, 0x48]);
    let mut dripping = RawClient::greet(&fixture.address());
    let _ = dripping.stream.write_all(&[&b"IHAVEOPT"[..], &[0, 0, 0, 99, 0, 16, 0, 0]].concat());
    // Slowly enough that the option has not come to its end by then.
    while dripping.stream.write_all(&[0]).is_ok() && fixture.server.connections() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    for client in idle.iter_mut().chain([&mut half, &mut dripping]) {
        client.expect_closed();
    }
    fixture.wait_until_left();
    let mut client = RawClient::enter(&fixture.address(), "disk", Style::Simple);
    std::thread::sleep(limit + Duration::from_millis(500));
    client.request(command::READ, 0, 1, 0, 1, &[]);
    assert_eq!(client.reply(1).errno, 0, "the time limit is for the handshake only");
}

#[test]
fn connections_beyond_the_cap_are_closed_and_the_others_go_on() {
    let fixture = Fixture::with(|settings| settings.connections_max = 3);
    let mut clients: Vec<_> = (0..3).map(|_| RawClient::enter(&fixture.address(), "disk", Style::Simple)).collect();
    let address = fixture.address();
    let mut refused = std::net::TcpStream::connect(address.trim_start_matches("nbd://")).unwrap();
    assert_eq!(std::io::Read::read(&mut refused, &mut [0; 1]).unwrap_or(0), 0);
    for client in &mut clients {
        client.request(command::READ, 0, 1, 0, 1, &[]);
        assert_eq!(client.reply(1).errno, 0);
    }
    clients.pop();
    fixture.wait_for(|fixture| fixture.server.connections() == 2);
    assert_serves(&fixture);
}

#[test]
fn a_device_that_is_fenced_or_stopping_answers_eshutdown_to_everything() {
    let fixture = Fixture::new();
    for slow in [false, true] {
        fixture.disk.slow.store(slow, Ordering::Relaxed);
        for kind in [ErrorKind::Fenced, ErrorKind::Stopping] {
            *fixture.disk.failure.lock() = None;
            for style in STYLES {
                let mut client = RawClient::enter(&fixture.address(), "disk", style);
                *fixture.disk.failure.lock() = Some(kind);
                for command in [command::READ, command::FLUSH, command::TRIM, command::CACHE, command::WRITE_ZEROES] {
                    client.request(command, 0, 3, 0, 4096, &[]);
                    assert_eq!(client.reply(0).errno, ESHUTDOWN, "{style:?} {command} slow: {slow}");
                }
                client.request(command::WRITE, write_flag(style) | command_flag::FUA, 4, 0, 16, &[1; 16]);
                assert_eq!(client.reply(0).errno, ESHUTDOWN, "{style:?} write slow: {slow}");
            }
        }
    }
}

#[test]
fn tls_required_refuses_everything_else_and_no_tls_offers_none() {
    let directory = tempfile::tempdir().unwrap();
    let tls = tls_files::settings(directory.path(), varve::nbd::TlsMode::Require, false);
    let fixture = Fixture::with(|settings| settings.tls = tls);
    assert!(fixture.address().starts_with("nbds://"));
    let mut client = RawClient::greet(&fixture.address());
    let cases = [
        (option::LIST, vec![]),
        (option::INFO, info_data(b"disk", &[])),
        (option::GO, info_data(b"disk", &[])),
        (option::GO, info_data(b"nowhere", &[])),
        (option::STRUCTURED_REPLY, vec![]),
        (option::EXTENDED_HEADERS, vec![]),
        (option::SET_META_CONTEXT, meta_data(b"disk", &["base:allocation"])),
        (999, vec![]),
    ];
    for (option, data) in cases {
        let replies = client.ask(option, &data);
        assert_eq!(replies.len(), 1);
        assert_eq!(replies[0].0, option_reply::ERR_TLS_REQD, "{option}");
    }
    assert_eq!(client.ask(option::STARTTLS, b"x")[0].0, option_reply::ERR_INVALID);
    client.send_option(option::EXPORT_NAME, b"disk");
    assert!(client.expect_closed().is_empty(), "EXPORT_NAME without TLS");

    // Plain options sent right behind STARTTLS must not be answered, with or without TLS.
    let mut client = RawClient::greet(&fixture.address());
    client.send_option(option::STARTTLS, &[]);
    client.send_option(option::STRUCTURED_REPLY, &[]);
    assert_eq!(client.option_reply(option::STARTTLS), (option_reply::ACK, vec![]));
    let rest = client.expect_closed();
    assert!(rest.len() < 16, "nothing but an alert: {rest:?}");
    let mut client = RawClient::connect(&fixture.address());
    client.send(&[0, 0, 0, 0]);
    client.send_option(option::EXPORT_NAME, b"disk");
    assert!(client.expect_closed().is_empty());
    fixture.wait_until_left();
}
