//! The kernel's own NBD client, in a guest that tools/guest makes: a file system on /dev/nbd0 over four connections, before and after the daemon
//! is killed.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::process::Command;
use std::time::Duration;

use support::daemon::{Host, StoreKind, World, both_stores};
use support::process::{repository, run_within};

/// The guest runs in software, on a machine that may be busy.
const GUEST: Duration = Duration::from_secs(600);

both_stores!(a_guest_keeps_its_files);

/// Runs a script in a guest; `$1` in it is the port of the daemon, `$2` the export.
#[track_caller]
fn in_guest(host: &Host, volume: &str, script: &str) -> String {
    let port = host.nbd_port("nbd");
    let script = format!("set -eu\nset -- {port} {volume}\n{script}");
    run_within(Command::new(repository().join("tools/guest")).args(["run", &script]), GUEST).succeeded()
}

fn a_guest_keeps_its_files(kind: StoreKind) {
    const BEGIN: &str = "modules nbd ext4\nnbd-client 10.0.2.2 $1 /dev/nbd0 -N $2 -C 4 >/dev/null\n";
    const END: &str = "umount /mnt\ne2fsck -fn /dev/nbd0 >/dev/null\nnbd-client -d /dev/nbd0 >/dev/null\n";
    let world = World::new(kind);
    let host = world.host("a").with(&["--nbd", "127.0.0.1:0"]);
    let volume = host.create("guest", "256MiB");
    let mut daemon = host.start();
    let write = "mkfs.ext4 -q /dev/nbd0\nmount /dev/nbd0 /mnt\ncp -a /bin /mnt/bin\ndd if=/dev/urandom of=/mnt/data bs=64k count=300 conv=fsync 2>/dev/null\n\
                 dd if=/dev/urandom of=/mnt/gone bs=64k count=300 conv=fsync 2>/dev/null\nrm /mnt/gone\nfstrim /mnt\nsha256sum </mnt/data\n";
    let written = in_guest(&host, &volume, &[BEGIN, write, END].concat());
    assert_eq!(written.split_whitespace().next().map(str::len), Some(64), "no checksum: {written}");
    daemon.kill9();
    let daemon = host.start();
    let read = "mount -o ro /dev/nbd0 /mnt\nsha256sum </mnt/data\nfor f in busybox mkfs.ext4 e2fsck; do cmp /bin/$f /mnt/bin/$f; done\n";
    assert_eq!(in_guest(&host, &volume, &[BEGIN, read, END].concat()), written, "another content after the death");
    daemon.stop();
    host.varve(&["check", &volume]).succeeded();
}
