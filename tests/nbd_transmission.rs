//! What the NBD server does for clients that do right: longest requests, extended headers, commits, and a good end.

#![expect(clippy::unwrap_used, reason = "a test may end where its tools fail")]

#[path = "support/memory_device.rs"]
mod memory_device;
#[path = "support/nbd_fixture.rs"]
mod nbd_fixture;
#[path = "support/raw_client.rs"]
mod raw_client;

use std::sync::atomic::Ordering;
use std::time::Duration;

use nbd_fixture::{Fixture, SIZE};
use raw_client::{RawClient, info_data, meta_data, option_bytes};
use varve::nbd::protocol::{Put, RequestHead, Style, command, command_flag, option, option_reply};

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

/// The flag that a write must have.
fn write_flag(style: Style) -> u16 {
    if style == Style::Extended { command_flag::PAYLOAD_LEN } else { 0 }
}

#[test]
fn stopping_answers_what_is_in_flight_and_cuts_off_what_does_not_end() {
    let fixture = Fixture::new();
    fixture.disk.slow.store(true, Ordering::Relaxed);
    let mut client = RawClient::enter(&fixture.address(), "disk", Style::Structured);
    let held = fixture.disk.gate.blocking_write();
    client.request(command::WRITE, command_flag::FUA, 1, 0, 3, b"abc");
    client.request(command::READ, 0, 2, 512, 8, &[]);
    // A reply to the refused request tells that the two before it have been taken in.
    client.request(99, 0, 3, 0, 0, &[]);
    assert_eq!(client.reply(0).cookie, 3);
    let address = fixture.address();
    assert_eq!(fixture.server.connections(), 1);
    let mut idle = RawClient::greet(&address);
    drop(held);
    let Fixture { disk, server, exports, _runtime: _kept } = fixture;
    assert_eq!(server.stop(Duration::from_secs(60)), 0);
    let mut cookies = [client.reply(0).cookie, client.reply(0).cookie];
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2]);
    assert!(client.expect_closed().is_empty());
    assert!(idle.expect_closed().is_empty());
    assert_eq!(&disk.snapshot()[..3], b"abc");
    assert_eq!(exports.clients.load(Ordering::SeqCst), 0);
    assert!(std::net::TcpStream::connect(address.trim_start_matches("nbd://")).is_err());
}

#[test]
fn a_change_that_waits_when_its_client_is_lost_is_given_up() {
    let fixture = Fixture::new();
    fixture.disk.slow.store(true, Ordering::Relaxed);
    let held = fixture.disk.gate.blocking_write();
    let wait_with_a_write = |byte: u8| {
        let mut client = RawClient::enter(&fixture.address(), "disk", Style::Structured);
        client.request(command::WRITE, 0, 1, 0, 4096, &[byte; 4096]);
        // A reply to the refused request tells that the one before it has been taken in.
        client.request(99, 0, 2, 0, 0, &[]);
        assert_eq!(client.reply(0).cookie, 2);
        client
    };
    let mut half = wait_with_a_write(1);
    half.end_sending();
    assert_eq!(half.reply(0).errno, ESHUTDOWN, "whoever only stopped sending is told");
    assert!(half.expect_closed().is_empty());
    drop(wait_with_a_write(1));
    // Their places come free although nothing goes on.
    fixture.wait_until_left();
    let mut polite = wait_with_a_write(2);
    polite.request(command::DISC, 0, 3, 0, 0, &[]);
    drop((held, polite));
    fixture.wait_until_left();
    assert!(fixture.disk.snapshot()[..4096] == [2; 4096], "who says goodbye has all done that was asked for");

    // A client that lost its connection comes back, and writes the same block.
    let held = fixture.disk.gate.blocking_write();
    let lost = wait_with_a_write(3);
    drop(lost);
    fixture.wait_until_left();
    fixture.disk.slow.store(false, Ordering::Relaxed);
    let mut again = RawClient::enter(&fixture.address(), "disk", Style::Structured);
    again.request(command::WRITE, command_flag::FUA, 1, 0, 4096, &[4; 4096]);
    assert_eq!(again.reply(0).errno, 0);
    drop((held, again));
    fixture.wait_until_left();
    assert!(fixture.disk.snapshot()[..4096] == [4; 4096], "what was given up took effect behind what is newer");
}

/// A client with more under way than it may have: what it sent last waits in the socket, behind a thread that waits for memory.
#[test]
fn a_client_that_is_lost_while_its_requests_wait_for_memory_is_given_up() {
    // Behind its own requests, and behind those of another client that has all that is shared.
    for inflight_bytes_max in [8 << 10, 64 << 20] {
        let fixture = Fixture::with(|settings| {
            settings.inflight_bytes_max = inflight_bytes_max;
            settings.transfer_bytes_max = 2;
        });
        let (disk, big) = (&fixture.disk, &fixture.exports.devices["big"]);
        let wait_with_writes = |name| {
            let mut client = RawClient::enter(&fixture.address(), name, Style::Structured);
            for cookie in 0..66 {
                client.request(command::WRITE, 0, cookie, 0, 512, &[1; 512]);
            }
            client
        };
        big.slow.store(true, Ordering::Relaxed);
        let held_big = big.gate.blocking_write();
        let other = wait_with_writes("big");
        disk.slow.store(true, Ordering::Relaxed);
        let held = disk.gate.blocking_write();
        drop(wait_with_writes("disk"));
        fixture.wait_for(|fixture| fixture.exports.clients.load(Ordering::SeqCst) == 1);
        disk.slow.store(false, Ordering::Relaxed);
        let mut again = RawClient::enter(&fixture.address(), "disk", Style::Structured);
        again.request(command::WRITE, command_flag::FUA, 1, 0, 4096, &[2; 4096]);
        assert_eq!(again.reply(0).errno, 0);
        drop((held, held_big, again, other));
        fixture.wait_until_left();
        assert!(disk.snapshot()[..4096] == [2; 4096], "what was given up took effect behind what is newer");
    }
}

#[test]
fn who_asks_for_nothing_is_let_go_and_who_waits_for_an_answer_is_not() {
    let fixture = Fixture::with(|settings| settings.idle_time = Some(Duration::from_secs(5)));
    fixture.disk.slow.store(true, Ordering::Relaxed);
    let held = fixture.disk.gate.blocking_write();
    let mut waiting = RawClient::greet(&fixture.address());
    waiting.agree(Style::Structured);
    // In one piece: nobody can be too slow between the two.
    let read = RequestHead { flags: 0, command: command::READ, cookie: 1, offset: 512, length: 8 };
    let bytes = [option_bytes(option::GO, &info_data(b"disk", &[])), waiting.encode(read, &[])].concat();
    waiting.send(&bytes);
    while waiting.option_reply(option::GO).0 != option_reply::ACK {}
    // They come and go one after the other, each after more than the time: the first waits all the while.
    for _ in 0..2 {
        let mut idle = RawClient::enter(&fixture.address(), "disk", Style::Structured);
        assert!(idle.expect_closed().is_empty());
    }
    // It is still heard. Asked behind the answers, this might come when the time is over again.
    waiting.request(command::READ, 0, 2, 0, 8, &[]);
    drop(held);
    let mut cookies = [waiting.reply(8).cookie, waiting.reply(8).cookie];
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2]);
    assert!(waiting.expect_closed().is_empty(), "it has its answers, and asks for nothing any more");
    fixture.wait_until_left();
}

#[test]
fn extended_headers_tell_64_bit_extents_of_the_contexts_asked_for() {
    let fixture = Fixture::new();
    let mut client = RawClient::greet(&fixture.address());
    client.agree(Style::Extended);
    assert_eq!(client.ask(option::STRUCTURED_REPLY, &[])[0].0, option_reply::ERR_EXT_HEADER_REQD);
    let contexts = ["base:allocation", "varve:residence", "x-other:thing"];
    let replies = client.ask(option::SET_META_CONTEXT, &meta_data(b"disk", &contexts));
    assert_eq!(replies.iter().map(|reply| reply.0).collect::<Vec<_>>(), [4, 4, 1]);
    let replies = client.ask(option::GO, &info_data(b"disk", &[]));
    let flags = u16::from_be_bytes([replies[0].1[10], replies[0].1[11]]);
    assert_eq!(flags & (1 << 12), 1 << 12, "BLOCK_STATUS may have a payload");

    client.request(command::WRITE, command_flag::PAYLOAD_LEN, 1, 4096, 4096, &[7; 4096]);
    assert_eq!(client.reply(0).errno, 0);
    let extents = |context: u32, extents: &[(u64, u64)]| {
        let mut data = Vec::new();
        data.put_u32(context);
        data.put_u32(extents.len() as u32);
        extents.iter().for_each(|extent| {
            data.put_u64(extent.0);
            data.put_u64(extent.1);
        });
        data
    };
    client.request(command::BLOCK_STATUS, 0, 2, 0, SIZE, &[]);
    for context in [1, 2] {
        let reply = client.reply(0);
        assert_eq!((reply.kind, reply.cookie), (6, 2));
        assert_eq!(reply.data, extents(context, &[(4096, 3), (4096, 0), (SIZE - 8192, 3)]));
    }
    let payload = |length: u64, contexts: &[u32]| {
        let mut data = Vec::new();
        data.put_u64(length);
        contexts.iter().for_each(|&context| data.put_u32(context));
        data
    };
    let only_one = payload(100, &[2]);
    let flags = command_flag::PAYLOAD_LEN | command_flag::REQ_ONE;
    client.request(command::BLOCK_STATUS, flags, 3, 5000, only_one.len() as u64, &only_one);
    assert_eq!(client.reply(0).data, extents(2, &[(100, 0)]));
    let bad =
        [payload(100, &[]), payload(100, &[3]), payload(100, &[1, 1]), payload(SIZE, &[1]), vec![0; 3], vec![0; 9]];
    for bad in bad {
        client.request(command::BLOCK_STATUS, flags, 4, 5000, bad.len() as u64, &bad);
        assert_eq!((client.reply(0).errno), EINVAL, "{bad:?}");
    }
    for command in [command::TRIM, command::WRITE_ZEROES, command::CACHE] {
        client.request(command, 0, 5, 0, 1 << 40, &[]);
        assert_eq!(client.reply(0).errno, if command == command::WRITE_ZEROES { ENOSPC } else { EINVAL });
    }
    client.request(command::DISC, 0, 0, 0, 0, &[]);
    assert!(client.expect_closed().is_empty());
}

#[test]
fn requests_of_the_longest_kind_survive_the_way_there_and_back() {
    let fixture = Fixture::new();
    let length = 32 << 20;
    let payload: Vec<u8> = (0..length).map(|index| (index % 241) as u8).collect();
    for (slow, style) in [false, true].into_iter().flat_map(|slow| STYLES.map(|style| (slow, style))) {
        fixture.exports.devices["big"].slow.store(slow, Ordering::Relaxed);
        let mut client = RawClient::enter(&fixture.address(), "big", style);
        client.request(command::WRITE, write_flag(style), 1, 12_345, length, &payload);
        assert_eq!(client.reply(0).errno, 0);
        client.request(command::READ, 0, 2, 12_345, length, &[]);
        assert!(client.reply(length as usize).data == payload, "{style:?} slow: {slow}");
        client.request(command::TRIM, 0, 3, 0, 64 << 20, &[]);
        client.request(command::DISC, 0, 4, 0, 0, &[]);
        assert_eq!(client.reply(0).errno, 0, "what was asked before the end is answered");
        assert!(client.expect_closed().is_empty());
    }
    fixture.wait_until_left();
}

#[test]
fn one_commit_covers_a_round_and_what_was_before_it() {
    let fixture = Fixture::new();
    let mut client = RawClient::enter(&fixture.address(), "disk", Style::Structured);
    let mut bytes = Vec::new();
    for cookie in 0..20 {
        let flags = if cookie % 2 == 0 { command_flag::FUA } else { 0 };
        let head = RequestHead { flags, command: command::WRITE, cookie, offset: cookie * 10, length: 10 };
        bytes.extend(client.encode(head, &[cookie as u8; 10]));
    }
    let head = RequestHead { flags: 0, command: command::FLUSH, cookie: 20, offset: 0, length: 0 };
    bytes.extend(client.encode(head, &[]));
    let head = RequestHead { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 };
    bytes.extend(client.encode(head, &[]));
    client.send(&bytes);
    let mut cookies: Vec<_> = (0..21)
        .map(|_| client.reply(0))
        .inspect(|reply| assert_eq!(reply.errno, 0))
        .map(|reply| reply.cookie)
        .collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..21).collect::<Vec<_>>());
    assert!(client.expect_closed().is_empty());
    let commits = fixture.disk.commits.load(Ordering::Relaxed);
    assert!((1..=11).contains(&commits), "{commits} commits");
    assert!(fixture.disk.snapshot()[..200].iter().enumerate().all(|(index, &byte)| byte as usize == index / 10));
}

#[test]
fn connections_share_their_memory_and_none_stands_still() {
    let fixture = Fixture::with(|settings| settings.transfer_bytes_max = 16 << 20);
    let (short, long) = (128 << 10, 7 << 20);
    for slow in [false, true] {
        fixture.exports.devices["big"].slow.store(slow, Ordering::Relaxed);
        // One that does not take its replies has as much of what is shared as there is.
        let mut stalled = RawClient::enter(&fixture.address(), "big", Style::Structured);
        for cookie in 0..8 {
            stalled.request(command::READ, 0, cookie, 0, long, &[]);
        }
        let mut other = RawClient::enter(&fixture.address(), "big", Style::Structured);
        for cookie in 0..50 {
            other.request(command::READ, 0, cookie, 0, short, &[]);
            assert_eq!(other.reply(short as usize).cookie, cookie);
        }
        for _ in 0..8 {
            assert_eq!(stalled.reply(long as usize).errno, 0);
        }
        // Each of these wants nearly all of it, in both directions.
        std::thread::scope(|scope| {
            for number in 0..6_u8 {
                let address = fixture.address();
                scope.spawn(move || {
                    let mut client = RawClient::enter(&address, "big", Style::Structured);
                    let (offset, content) = (u64::from(number) * (8 << 20), vec![number + 1; long as usize]);
                    for round in 0..3 {
                        client.request(command::WRITE, command_flag::FUA, 2 * round, offset, long, &content);
                        assert_eq!(client.reply(0).errno, 0);
                        client.request(command::READ, 0, 2 * round + 1, offset, long, &[]);
                        assert!(client.reply(long as usize).data == content, "client {number} slow: {slow}");
                    }
                });
            }
        });
    }
}
