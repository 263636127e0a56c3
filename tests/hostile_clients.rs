//! Hostile NBD clients against a real daemon: thousands of connections, handshakes that never end, requests that make no sense, writes that
//! stop half way, readers that do not read. A client of another volume goes on working all the while, and has right data; and what the
//! daemon gave to the hostile ones, memory, descriptors and threads, comes back when they have gone.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::client::{Client, Command};
use support::daemon::{Daemon, Host, StoreKind, World, both_stores};
use support::process;
use varve::nbd::protocol::{Put, RequestHead, Style, command, encode_request};

both_stores!(
    thousands_of_connections_leave_room_for_others,
    requests_that_make_no_sense_harm_nobody_else,
    half_writes_and_deaf_readers_leave_room_for_others,
);

const MIB: u64 = 1 << 20;
/// Of the hostile; whoever behaves comes from 127.0.0.1.
const HOSTILE: [Ipv4Addr; 4] = [
    Ipv4Addr::new(127, 0, 0, 2),
    Ipv4Addr::new(127, 0, 0, 3),
    Ipv4Addr::new(127, 0, 0, 4),
    Ipv4Addr::new(127, 0, 0, 5),
];
/// As many as the issue asks for, and less where a process may not have so many descriptors.
const CONNECTIONS: u64 = 10_000;

/// A daemon on TCP, a hostile client's volume, and a client that behaves, at work on another.
struct Scene {
    daemon: Daemon,
    port: u16,
    honest: Honest,
    before: Usage,
}

/// What a process has.
#[derive(Clone, Copy, Debug)]
struct Usage {
    descriptors: usize,
    /// Those that serve connections.
    threads: usize,
    memory_kib: u64,
}

fn usage(daemon: &Daemon) -> Usage {
    let list = |what| std::fs::read_dir(format!("/proc/{}/{what}", daemon.pid())).unwrap().flatten();
    let serves = |thread: &std::fs::DirEntry| process::text_of(&thread.path().join("comm")).trim() == "nbd";
    Usage {
        descriptors: list("fd").count(),
        threads: list("task").filter(serves).count(),
        memory_kib: daemon.memory_kib().0,
    }
}

impl Scene {
    fn set(world: &World) -> (Host, Scene) {
        let flags =
            ["--nbd", "127.0.0.1:0", "--memory-size", "64MiB", "--transfer-size", "128MiB", "--log-size", "256MiB"];
        let host = world.host("a").with(&flags);
        let (good, _evil) = (host.create("good", "128MiB"), host.create("evil", "128MiB"));
        let daemon = host.start();
        let port = host.nbd_port("nbd");
        // The volume of the hostile is attached before anything is counted.
        drop(enter(Ipv4Addr::LOCALHOST, port, "evil").unwrap());
        let honest = Honest::start(Client::connect(&host.nbd(), &good).unwrap());
        honest.goes_on();
        let before = usage(&daemon);
        (host, Scene { daemon, port, honest, before })
    }

    /// Somebody who comes just now is served.
    #[track_caller]
    fn serves_newcomers(&self) {
        let mut stream = enter(Ipv4Addr::LOCALHOST, self.port, "evil").expect("a newcomer is turned away");
        stream.write_all(&request(command::READ, 1, 0, 4096)).unwrap();
        let mut reply = vec![0; 16 + 4096];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..8], [0; 4], "an error");
    }

    /// Everything that was given out comes back.
    #[track_caller]
    fn comes_back(self) {
        let (daemon, before) = (&self.daemon, self.before);
        process::until("descriptors, threads and memory come back", || {
            let now = usage(daemon);
            // The honest client fills the caches meanwhile, within their budget.
            // So do files of its index, and connections to the store.
            now.descriptors <= before.descriptors + 64
                && now.threads <= before.threads
                && now.memory_kib <= before.memory_kib + (64 + 64) * 1024
        });
        let (_, most) = daemon.memory_kib();
        // The two budgets, what a daemon may take besides (`design/memory.md`), and the first buffers of all connections.
        let bound = (64 + 128 + 128 + 64) * 1024;
        assert!(most < bound, "{most} KiB at the worst moment, of at most {bound}; before: {before:?}");
        self.honest.goes_on();
        self.honest.stop();
        self.daemon.stop();
    }
}

/// A client that writes and reads back, and checks every byte, until it is told to stop.
struct Honest {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Honest {
    fn start(mut client: Client) -> Self {
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (rounds.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut chance = StdRng::seed_from_u64(7);
            while !stopped.load(Ordering::Relaxed) {
                let round = counted.load(Ordering::Relaxed);
                let length = 4096 * chance.random_range(1..64);
                let offset = 4096 * chance.random_range(0..(96 * MIB - length) / 4096);
                let content: Vec<u8> = (0..length).map(|place| (place ^ round) as u8).collect();
                client.write(offset, &content).unwrap();
                if round.is_multiple_of(8) {
                    client.flush().unwrap();
                }
                let read = client.ask(Command::Read, 0, offset, length as u32, &[]);
                assert!(read == Ok(content), "round {round}: what was written does not come back");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Honest { rounds, stop, thread }
    }

    /// Waits until it has done a good deal more.
    #[track_caller]
    fn goes_on(&self) {
        let from = self.rounds.load(Ordering::Relaxed);
        process::until("the client of the other volume goes on", || {
            assert!(!self.thread.is_finished(), "the client of the other volume has failed");
            self.rounds.load(Ordering::Relaxed) >= from + 20
        });
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Connects from an address of one's choice.
fn connect_from(from: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrV4::new(from, 0))?;
    connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(process::PATIENCE))?;
    stream.set_write_timeout(Some(process::PATIENCE))?;
    Ok(stream)
}

/// The head of an option.
fn option(number: u32, announced: u32) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.put_u32(number);
    bytes.put_u32(announced);
    bytes
}

/// Goes to the transmission phase of an export by EXPORT_NAME.
fn enter(from: Ipv4Addr, port: u16, export: &str) -> std::io::Result<TcpStream> {
    let mut stream = connect_from(from, port)?;
    stream.read_exact(&mut [0; 18])?;
    stream.write_all(&[&[0, 0, 0, 3], &option(1, export.len() as u32)[..], export.as_bytes()].concat())?;
    stream.read_exact(&mut [0; 10])?;
    Ok(stream)
}

fn request(command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_request(Style::Simple, &RequestHead { flags: 0, command, cookie, offset, length }, &mut bytes);
    bytes
}

fn thousands_of_connections_leave_room_for_others(kind: StoreKind) {
    let world = World::new(kind);
    let (_host, scene) = Scene::set(&world);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let count = CONNECTIONS.min(limit.maximum.unwrap_or(CONNECTIONS) / 2 - 500);
    let mut crowd = Vec::new();
    for number in 0..count {
        let mut stream = connect_from(HOSTILE[number as usize % HOSTILE.len()], scene.port).unwrap();
        // Some say nothing, others begin something: a flag, an option, an option's data.
        let begun: &[u8] = match number % 4 {
            0 => &[],
            1 => &[0, 0],
            2 => &[0, 0, 0, 3, b'I'],
            _ => &[&[0, 0, 0, 3], &option(7, 16_000)[..], &[1, 2, 3]].concat(),
        };
        // It may have been closed already.
        let _ = stream.write_all(begun);
        crowd.push(stream);
        if number % 1000 == 999 {
            scene.serves_newcomers();
            scene.honest.goes_on();
        }
    }
    // They hold what places there are, and drip, until their time is up.
    scene.serves_newcomers();
    let mut open = crowd.len();
    while open > 0 {
        crowd.retain_mut(|stream| stream.write_all(&[0]).is_ok());
        assert!(crowd.len() <= open);
        open = crowd.len();
        scene.honest.goes_on();
    }
    scene.serves_newcomers();
    scene.comes_back();
}

fn requests_that_make_no_sense_harm_nobody_else(kind: StoreKind) {
    let world = World::new(kind);
    let (_host, scene) = Scene::set(&world);
    let mut nonsense: Vec<Vec<u8>> = Vec::new();
    for command in (0..12).chain([99, u16::MAX]) {
        for (offset, length) in [
            (0, 0),
            (u64::MAX, 1),
            (128 * MIB, 1),
            (128 * MIB - 1, 2),
            (u64::MAX - 4095, 4096),
            (0, 33 * MIB),
            (0, u64::from(u32::MAX)),
            (1 << 63, u64::from(u32::MAX)),
        ] {
            let payload = if command == command::WRITE { length.min(1000) as usize } else { 0 };
            nonsense.push([request(command, 5, offset, length), vec![7; payload]].concat());
        }
    }
    let mut flags = request(command::READ, 6, 0, 4096);
    flags[4..6].copy_from_slice(&[0xff, 0xff]);
    nonsense.push(flags);
    let mut chance = StdRng::seed_from_u64(3);
    for _ in 0..300 {
        let mut bytes = request(chance.random_range(0..8), 7, chance.random(), u64::from(chance.random::<u32>()));
        let place = chance.random_range(0..bytes.len());
        bytes[place] = chance.random();
        bytes.truncate(chance.random_range(1..=bytes.len()));
        nonsense.push(bytes);
    }
    for (number, bytes) in nonsense.iter().enumerate() {
        let from = HOSTILE[number % HOSTILE.len()];
        let mut inside = enter(from, scene.port, "evil").unwrap();
        // Whatever it answers, it answers or closes: nothing is left to wait for.
        let _ = inside.write_all(bytes);
        let _ = inside.shutdown(std::net::Shutdown::Write);
        drain(&mut inside);
        let mut outside = connect_from(from, scene.port).unwrap();
        let _ = outside.write_all(&[&[0, 0, 0, 3], &option(chance.random_range(0..12), 60)[..], bytes].concat());
        let _ = outside.shutdown(std::net::Shutdown::Write);
        drain(&mut outside);
    }
    scene.honest.goes_on();
    scene.serves_newcomers();
    scene.comes_back();
}

/// Takes what comes until the server closes.
fn drain(stream: &mut TcpStream) {
    match std::io::copy(stream, &mut std::io::sink()) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
        Err(error) => panic!("the server neither answered nor closed: {error}"),
    }
}

fn half_writes_and_deaf_readers_leave_room_for_others(kind: StoreKind) {
    let world = World::new(kind);
    let (host, scene) = Scene::set(&world);
    let mut hostile = Vec::new();
    for number in 0..2 {
        let from = HOSTILE[number % HOSTILE.len()];
        let mut writer = enter(from, scene.port, "evil").unwrap();
        writer.set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        writer.write_all(&request(command::WRITE, 1, 0, 32 * MIB)).unwrap();
        // Half of it; memory is there for one such write of an export.
        let _ = writer.write_all(&vec![1; 16 << 20]);
        let mut reader = enter(from, scene.port, "evil").unwrap();
        for cookie in 0..64 {
            reader.write_all(&request(command::READ, cookie, 0, 32 * MIB)).unwrap();
        }
        hostile.extend([writer, reader]);
    }
    scene.honest.goes_on();
    // Long requests need memory of the kind that the hostile keep. Those of one export can keep half of it from another, and no more.
    let mut client = Client::connect(&host.nbd(), "good").unwrap();
    let content: Vec<u8> = (0..32 * MIB).map(|place| (place >> 9) as u8).collect();
    for round in 0..8 {
        client.write(96 * MIB, &content).unwrap();
        let read = client.ask(Command::Read, 0, 96 * MIB, content.len() as u32, &[]);
        assert!(read.as_ref() == Ok(&content), "round {round}: what was written does not come back");
    }
    drop(client);
    scene.honest.goes_on();
    scene.serves_newcomers();
    drop(hostile);
    scene.comes_back();
}
