//! The NBD server with the clients that people use: libnbd's tools and bindings, QEMU's, fio, and the `nbd` crate.

#![expect(clippy::unwrap_used, reason = "a test may end where its tools fail")]

#[path = "support/memory_device.rs"]
mod memory_device;
#[path = "support/nbd_fixture.rs"]
mod nbd_fixture;
#[allow(dead_code, reason = "each test file uses a part of the support")]
#[path = "support/tls_files.rs"]
mod tls_files;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbd_fixture::{Fixture, SIZE};
use varve::nbd::TlsMode;

/// Runs a program, and returns what it said.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{said}\n{complained}", output.status);
    said
}

/// A file of `length` bytes: runs of noise and of zeroes.
fn make_image(path: &Path, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for (index, chunk) in bytes.chunks_mut(70_001).enumerate() {
        for byte in chunk.iter_mut().filter(|_| index % 3 != 0) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
    }
    std::fs::write(path, &bytes).unwrap();
    bytes
}

/// Both kinds of device: one that does everything at once, one that does nothing at once.
fn both_ways(test: impl Fn(&Fixture)) {
    for slow in [false, true] {
        let fixture = Fixture::new();
        for device in fixture.exports.devices.values() {
            device.slow.store(slow, Ordering::Relaxed);
        }
        test(&fixture);
        fixture.wait_until_left();
    }
}

#[test]
fn nbdinfo_shows_all_flags_and_both_contexts() {
    let fixture = Fixture::new();
    let said = run("nbdinfo", &[&format!("{}/disk", fixture.address())]);
    for expected in [
        "using structured packets",
        "export-size: 8388608",
        "disk in memory",
        "base:allocation",
        "varve:residence",
        "is_read_only: false",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_minimum: 1\n",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(said.contains(expected), "{expected} is missing:\n{said}");
    }
    let said = run("nbdinfo", &["--is", "read-only", &format!("{}/read-only", fixture.address())]);
    assert!(said.is_empty());
    let said = run("nbdinfo", &["--list", &fixture.address()]);
    assert!(said.contains("export=\"disk\"") && !said.contains("secret"), "{said}");
    fixture.disk.slow.store(true, Ordering::Relaxed);
    run("qemu-io", &["-f", "raw", "-c", "write 64k 64k", &format!("{}/disk", fixture.address())]);
    let said = run("nbdinfo", &["--map=varve:residence", &format!("{}/disk", fixture.address())]);
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(lines, [["0", "65536", "3"], ["65536", "65536", "0"], ["131072", "8257536", "3"]], "{said}");
}

#[test]
fn nbdcopy_in_and_out_with_four_connections() {
    both_ways(|fixture| {
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (directory.path().join("in"), directory.path().join("out"));
        let bytes = make_image(&source, SIZE as usize);
        let uri = format!("{}/disk", fixture.address());
        run("nbdcopy", &["--connections=4", "--flush", source.to_str().unwrap(), &uri]);
        assert!(fixture.disk.snapshot() == bytes, "the disk differs from what was copied in");
        assert!(fixture.disk.commits.load(Ordering::Relaxed) > 0);
        run("nbdcopy", &["--connections=4", &uri, target.to_str().unwrap()]);
        assert!(std::fs::read(&target).unwrap() == bytes, "what was copied out differs");
    });
}

#[test]
fn qemu_tools_agree_with_the_disk() {
    both_ways(|fixture| {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        make_image(&image, SIZE as usize);
        let (image, uri) = (image.to_str().unwrap(), format!("{}/disk", fixture.address()));
        assert!(run("qemu-img", &["info", &uri]).contains("virtual size: 8 MiB"));
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", image, &uri]);
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
        let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
        assert!(map.contains("\"zero\": true") && map.contains("\"data\": true"), "{map}");
        let odd = [
            "write -P 1 1 1",
            "write -P 2 511 513",
            "write -P 3 4095 2",
            "write -f -P 4 1000003 70001",
            "write -P 5 8388607 1",
            "write -z 4097 8191",
            "write -z -u 2000001 100003",
            "discard 3000000 65536",
            "read -P 1 1 1",
            "read -P 2 511 513",
            "read -P 3 4095 2",
            "read -P 4 1000003 70001",
            "read -P 5 8388607 1",
            "read -P 0 4097 8191",
            "read -P 0 2000001 100003",
            "flush",
        ];
        let mut arguments = vec!["-f", "raw"];
        odd.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&uri);
        let said = run("qemu-io", &arguments);
        assert!(!said.contains("verification failed") && !said.contains("error"), "{said}");
    });
}

#[test]
fn fio_verifies_random_writes_of_all_lengths_on_four_connections() {
    both_ways(|fixture| {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("fio")
            .current_dir(directory.path())
            .args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned=0"])
            .args(["--blockalign=512", "--iodepth=16", "--numjobs=4", "--size=12m", "--offset_increment=12m"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=32", "--group_reporting"])
            .arg(format!("--uri={}/big", fixture.address()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

/// Everything that libnbd can ask for, and the answers that it must get.
const LIBNBD_SCRIPT: &str = r#"
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("varve:residence")
h.connect_uri(sys.argv[1])
assert h.get_structured_replies_negotiated()
assert h.can_df() and h.can_fua() and h.can_fast_zero() and h.can_cache() and h.can_multi_conn()
assert h.can_meta_context("base:allocation") and h.can_meta_context("varve:residence")
h.pwrite(b"x" * 8192, 4096, nbd.CMD_FLAG_FUA)
h.pwrite(b"y" * 100001, 1000001)
chunks = []
def chunk(data, offset, status, error):
    chunks.append((bytes(data), offset, status))
data = h.pread_structured(100003, 1000000, chunk, nbd.CMD_FLAG_DF)
assert data == b"\0" + b"y" * 100001 + b"\0"
assert chunks == [(bytes(data), 1000000, nbd.READ_DATA)], len(chunks)
found = {}
def status(context, offset, entries, error):
    found[context] = (offset, list(entries))
h.block_status(65536, 0, status)
assert found == {"base:allocation": (0, [4096, 3, 8192, 0, 53248, 3]),
                 "varve:residence": (0, [4096, 3, 8192, 0, 53248, 3])}, found
h.block_status(65536, 0, status, nbd.CMD_FLAG_REQ_ONE)
assert found["base:allocation"] == (0, [4096, 3]), found
h.block_status(100, 5000, status, nbd.CMD_FLAG_REQ_ONE)
assert found["varve:residence"] == (5000, [100, 0]), found
h.cache(65536, 0)
h.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
h.zero(100, 9000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(8192, 4096) == b"\0" * 4096 + b"x" * 808 + b"\0" * 100 + b"x" * 3188
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 4096) == b"\0" * 8192
h.flush()
h.set_strict_mode(0)
for call in [lambda: h.pwrite(b"z", h.get_size()), lambda: h.zero(2, h.get_size() - 1)]:
    try: call()
    except nbd.Error as error: assert error.errno == "ENOSPC", error
    else: raise Exception("past the end")
try: h.pread(512, h.get_size())
except nbd.Error as error: assert error.errno == "EINVAL", error
else: raise Exception("past the end")
pending = []
for n in range(300):
    buffer = nbd.Buffer.from_bytearray(bytearray([n % 251]) * 3000)
    pending.append((h.aio_pwrite(buffer, 3000 * n), buffer))
while pending:
    pending = [p for p in pending if not h.aio_command_completed(p[0])]
    if pending: h.poll(-1)
for n in range(300): assert h.pread(3000, 3000 * n) == bytes([n % 251]) * 3000
other = nbd.NBD()
other.connect_uri(sys.argv[1])
h.pwrite(b"across", 77)
other.flush()
assert other.pread(6, 77) == b"across"
other.shutdown()
h.shutdown()
plain = nbd.NBD()
plain.set_request_structured_replies(False)
plain.connect_uri(sys.argv[1])
assert not plain.can_df()
assert plain.pread(6, 77) == b"across"
plain.shutdown()
"#;

#[test]
fn libnbd_uses_everything_there_is() {
    both_ways(|fixture| {
        run("/usr/bin/python3", &["-c", LIBNBD_SCRIPT, &format!("{}/disk", fixture.address())]);
        assert_eq!(fixture.disk.prefetches.load(Ordering::Relaxed), 1);
        assert!(fixture.disk.commits.load(Ordering::Relaxed) >= 5);
    });
}

#[test]
fn the_nbd_crate_reads_what_it_wrote() {
    both_ways(|fixture| {
        let address = fixture.address();
        let mut stream = std::net::TcpStream::connect(address.trim_start_matches("nbd://")).unwrap();
        let export = nbd::client::handshake(&mut stream, b"disk").unwrap();
        assert_eq!(export.size, SIZE);
        let mut client = nbd::client::NbdClient::new(&mut stream, &export);
        client.seek(SeekFrom::Start(4095)).unwrap();
        client.write_all(b"across a border").unwrap();
        client.seek(SeekFrom::Start(4090)).unwrap();
        let mut back = [0; 25];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"\0\0\0\0\0across a border\0\0\0\0\0");
    });
}

#[test]
fn tls_carries_everything_and_asks_for_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let tls = tls_files::settings(directory.path(), TlsMode::Require, true);
    let fixture = Fixture::with(|settings| settings.tls = tls);
    let port = fixture.address().rsplit(':').next().unwrap().to_owned();
    let files = directory.path().to_str().unwrap();
    let uri = format!("nbds://localhost:{port}/disk?tls-certificates={files}");
    assert!(run("nbdinfo", &[&uri]).contains("with TLS"));
    let (source, target) = (directory.path().join("in"), directory.path().join("out"));
    let bytes = make_image(&source, SIZE as usize);
    for slow in [false, true] {
        fixture.disk.slow.store(slow, Ordering::Relaxed);
        run("nbdcopy", &["--connections=2", "--flush", source.to_str().unwrap(), &uri]);
        assert!(fixture.disk.snapshot() == bytes, "the disk differs from what was copied in");
        run("nbdcopy", &["--connections=2", &uri, target.to_str().unwrap()]);
        assert!(std::fs::read(&target).unwrap() == bytes, "what was copied out differs");
    }
    let large = "import nbd,sys; h=nbd.NBD(); h.set_uri_allow_local_file(True); h.connect_uri(sys.argv[1]); \
                 d=bytes(range(256))*32768; h.pwrite(d,0); assert h.pread(len(d),0)==d; h.shutdown()";
    run("/usr/bin/python3", &["-c", large, &uri]);
    std::fs::remove_file(directory.path().join("client-cert.pem")).unwrap();
    std::fs::remove_file(directory.path().join("client-key.pem")).unwrap();
    let without = Command::new("nbdinfo").arg(&uri).output().unwrap();
    assert!(!without.status.success(), "a client without a certificate got in");
    fixture.wait_until_left();
}

#[test]
fn a_unix_socket_serves_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let fixture = Arc::new(Fixture::with(|settings| {
        settings.tcp.clear();
        settings.unix.push(path.clone());
    }));
    let uri = fixture.address().replace("///", "///disk");
    run("qemu-io", &["-f", "raw", "-c", "write -P 9 3 100000", "-c", "read -P 9 3 100000", &uri]);
    assert_eq!(fixture.disk.snapshot()[3], 9);
    drop(fixture);
    assert!(!path.exists(), "the socket file is still there");
}
