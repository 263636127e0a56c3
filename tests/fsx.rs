//! fsx, the file system exerciser, on ext4, xfs and btrfs and on the bare device, while the daemon is killed below it again and again: it compares
//! every read with what it has written.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod bridged;
    pub mod daemon;
    pub mod disk;
    pub mod minio;
    pub mod process;
}

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use support::bridged::Bridged;
use support::daemon::{StoreKind, both_stores};
use support::disk::FileSystem;
use support::process::{self, repository, run_within, tail, text_of};

/// Deaths of the daemon below each of them.
const KILLS: usize = 5;
/// Operations between two deaths, and after the last.
const OPERATIONS: usize = 400;
const SIGKILL: i32 = 9;

both_stores!(on_ext4, on_xfs, on_btrfs, on_the_bare_device);

/// Everything that changes a file, or reads it in another way.
const FILES: &str = "flen = 4194304\n[opsize]\nmax = 131072\n[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 5\nmapwrite = 5\nread = 10\n\
    write = 10\ntruncate = 2\nfsync = 2\nfdatasync = 2\nposix_fallocate = 2\npunch_hole = 2\nsendfile = 2\nposix_fadvise = 1\ncopy_file_range = 2\n";
/// A device keeps its size.
const DEVICE: &str = "flen = 33554432\nblockmode = true\nnosizechecks = true\n[opsize]\nmax = 131072\nalign = 512\n[weights]\ninvalidate = 2\n\
    mapread = 5\nmapwrite = 5\nread = 10\nwrite = 10\ntruncate = 0\nfsync = 3\nfdatasync = 2\nposix_fadvise = 1\n";

fn on_ext4(kind: StoreKind) {
    on_files(kind, FileSystem::Ext4);
}

fn on_xfs(kind: StoreKind) {
    on_files(kind, FileSystem::Xfs);
}

fn on_btrfs(kind: StoreKind) {
    on_files(kind, FileSystem::Btrfs);
}

fn on_files(kind: StoreKind, system: FileSystem) {
    let mut bridged = Bridged::new(kind);
    bridged.disk.make(system);
    let mount = bridged.disk.mount();
    let path = mount.path.join("exercised");
    exercise(&mut bridged, &path, FILES);
    let written = std::fs::read(&path).unwrap();
    let mount = bridged.check(system, mount);
    assert!(
        std::fs::read(&path).unwrap() == written,
        "the file is not what it was before the file system was unmounted"
    );
    mount.unmount();
    bridged.end();
}

fn on_the_bare_device(kind: StoreKind) {
    let mut bridged = Bridged::new(kind);
    let device = PathBuf::from(&bridged.disk.device);
    exercise(&mut bridged, &device, DEVICE);
    bridged.end();
}

/// Does not outlive its test.
struct Fsx(Child);

impl Drop for Fsx {
    fn drop(&mut self) {
        // Not waited for: it may be waiting for a disk that is gone.
        let _ = self.0.kill();
    }
}

/// Runs fsx on a file or device, and kills the daemon below it every few hundred operations.
fn exercise(bridged: &mut Bridged, path: &Path, settings: &str) {
    let folder = bridged.world.path().join("fsx");
    std::fs::create_dir(&folder).unwrap();
    let (config, log) = (folder.join("fsx.toml"), folder.join("log"));
    std::fs::write(&config, settings).unwrap();
    let output = std::fs::File::create(&log).unwrap();
    let mut command = Command::new(binary());
    // It says each operation, so that its progress can be seen, and goes on until it finds a difference.
    command.args(["-v", "-S", "71", "-f"]).arg(&config).arg("-P").arg(&folder).arg(path);
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    let mut fsx = Fsx(command.spawn().unwrap());
    let said = || text_of(&log);
    let mut go_on = || {
        let goal = said().lines().count() + OPERATIONS;
        process::until("fsx goes on", || {
            assert!(fsx.0.try_wait().unwrap().is_none(), "fsx found a difference:\n{}", tail(&said()));
            said().lines().count() >= goal
        });
    };
    for _ in 0..KILLS {
        go_on();
        bridged.kill();
    }
    go_on();
    fsx.0.kill().unwrap();
    let status = process::wait(&mut fsx.0, process::PATIENCE);
    let status = status.unwrap_or_else(|| panic!("fsx does not end:\n{}", tail(&said())));
    assert_eq!(status.signal(), Some(SIGKILL), "fsx found a difference:\n{}", tail(&said()));
}

fn binary() -> PathBuf {
    let tool = repository().join("tools/fsx");
    let path = run_within(Command::new(tool).arg("path"), process::PATIENCE).succeeded();
    PathBuf::from(path.trim())
}
