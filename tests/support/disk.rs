//! An export as a block device without a kernel client: nbdfuse shows it as a file, and a loop device makes a disk of the file.
//! Whatever the server does, the clean-up ends: a mount that hangs is cut loose at the FUSE connection.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{self, Outcome, run_within, shell, tail, text_of};

const CLEANUP: Duration = Duration::from_secs(20);

/// The file systems that every test of this kind is run with.
#[derive(Clone, Copy, Debug)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

/// An export as a loop device.
pub struct BlockDisk {
    /// `/dev/loopN`.
    pub device: String,
    nbdfuse: Child,
    mountpoint: PathBuf,
    /// The number under `/sys/fs/fuse/connections`.
    connection: u32,
    folder: TempDir,
}

impl BlockDisk {
    /// Attaches the export at `uri`.
    #[track_caller]
    pub fn attach(uri: &str) -> BlockDisk {
        let folder = tempfile::Builder::new().prefix("varve-disk-").tempdir().unwrap();
        let file = folder.path().join("disk");
        std::fs::write(&file, "").unwrap();
        let log = std::fs::File::create(folder.path().join("nbdfuse.log")).unwrap();
        let mut command = Command::new("nbdfuse");
        command.arg(&file).arg(uri).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut nbdfuse = command.spawn().expect("nbdfuse: run tools/test once, which installs it");
        process::until("nbdfuse shows the export", || {
            if let Some(status) = nbdfuse.try_wait().unwrap() {
                panic!("nbdfuse {uri} ended with {status}:\n{}", tail(&text_of(&folder.path().join("nbdfuse.log"))));
            }
            file.metadata().is_ok_and(|metadata| metadata.len() > 0)
        });
        let connection = rustix::fs::minor(file.metadata().unwrap().dev());
        let device = shell("losetup --find --show \"$1\"", &[&file.display().to_string()]);
        let mut disk = BlockDisk { device: String::new(), nbdfuse, mountpoint: file, connection, folder };
        disk.device = device.succeeded().trim().to_owned();
        disk
    }

    /// Makes a file system.
    #[track_caller]
    pub fn make(&self, kind: FileSystem) {
        match kind {
            FileSystem::Ext4 => shell("mkfs.ext4 -qF \"$1\"", &[&self.device]),
            FileSystem::Xfs => shell("mkfs.xfs -qf \"$1\"", &[&self.device]),
            FileSystem::Btrfs => shell("mkfs.btrfs -qf \"$1\"", &[&self.device]),
        }
        .succeeded();
    }

    /// Checks an unmounted file system, changing nothing.
    #[track_caller]
    pub fn check(&self, kind: FileSystem) {
        match kind {
            FileSystem::Ext4 => shell("e2fsck -fn \"$1\"", &[&self.device]),
            FileSystem::Xfs => shell("xfs_repair -n \"$1\"", &[&self.device]),
            FileSystem::Btrfs => shell("btrfs check --readonly \"$1\"", &[&self.device]),
        }
        .succeeded();
    }

    /// Mounts it.
    #[track_caller]
    pub fn mount(&self) -> Mount {
        let path = self.folder.path().join("mount");
        std::fs::create_dir_all(&path).unwrap();
        shell("mount \"$1\" \"$2\"", &[&self.device, &path.display().to_string()]).succeeded();
        Mount { path, mounted: true, connection: self.connection }
    }

    /// Lets go of it, as an orderly host does: everything is written back.
    #[track_caller]
    pub fn detach(mut self) {
        shell("losetup --detach \"$1\"", &[&self.device]).succeeded();
        self.device.clear();
        process::until("nbdfuse lets go", || {
            shell("fusermount3 -u \"$1\"", &[&self.mountpoint.display().to_string()]).status.success()
        });
        process::wait(&mut self.nbdfuse, process::PATIENCE).expect("nbdfuse ends once it is unmounted");
    }
}

impl Drop for BlockDisk {
    fn drop(&mut self) {
        if self.nbdfuse.try_wait().is_ok_and(|status| status.is_some()) && self.device.is_empty() {
            return;
        }
        // From here on errors are for nobody: each step is tried, and those that hang are cut loose.
        if !self.device.is_empty() {
            cleanup("losetup", &["--detach", &self.device]);
        }
        if !cleanup("fusermount3", &["-u", &self.mountpoint.display().to_string()]) {
            abort_fuse(self.connection);
            cleanup("fusermount3", &["-uz", &self.mountpoint.display().to_string()]);
        }
        if process::wait(&mut self.nbdfuse, Duration::from_secs(2)).is_none() {
            let _ = self.nbdfuse.kill();
            let _ = self.nbdfuse.wait();
        }
    }
}

/// A mounted file system.
pub struct Mount {
    pub path: PathBuf,
    mounted: bool,
    connection: u32,
}

impl Mount {
    /// Unmounts it in order.
    #[track_caller]
    pub fn unmount(mut self) {
        shell("umount \"$1\"", &[&self.path.display().to_string()]).succeeded();
        self.mounted = false;
    }

    /// The host dies: nothing more of it reaches the disk. What the kernel still holds is thrown away.
    pub fn crash(mut self) {
        abort_fuse(self.connection);
        let path = self.path.display().to_string();
        // Each write-back fails now, so unmounting ends.
        let gone = cleanup("umount", &[&path]) || cleanup("umount", &["-l", &path]);
        self.mounted = !gone;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let path = self.path.display().to_string();
        if self.mounted && !cleanup("umount", &[&path]) {
            abort_fuse(self.connection);
            cleanup("umount", &["-l", &path]);
        }
    }
}

/// Ends a FUSE connection: everything that waits for it gets an error.
fn abort_fuse(connection: u32) {
    let _ = std::fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1");
}

/// Runs a command for a clean-up: true if it ended well in time.
fn cleanup(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=2", &CLEANUP.as_secs().to_string(), program]).args(arguments);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a script in a folder.
#[track_caller]
pub fn script_in(folder: &Path, script: &str) -> Outcome {
    run_within(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(folder), process::PATIENCE)
}

/// QEMU's storage daemon between server and client: it connects again when the server was away, so that the client notices nothing.
pub struct Bridge {
    child: Child,
    folder: TempDir,
    export: String,
}

impl Bridge {
    /// Re-exports what `socket` offers as `export`.
    #[track_caller]
    pub fn start(socket: &Path, export: &str) -> Bridge {
        let folder = tempfile::Builder::new().prefix("varve-bridge-").tempdir().unwrap();
        let own = folder.path().join("nbd.sock");
        let node = format!(
            "driver=nbd,node-name=disk,server.type=unix,server.path={},export={export},reconnect-delay=120,discard=unmap",
            socket.display()
        );
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &node]);
        command.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", own.display())]);
        command.args(["--export", &format!("type=nbd,id=export,node-name=disk,name={export},writable=on")]);
        let child =
            command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon: run tools/test once, which installs it");
        let mut bridge = Bridge { child, folder, export: export.to_owned() };
        process::until("qemu-storage-daemon listens", || {
            assert!(bridge.child.try_wait().unwrap().is_none(), "qemu-storage-daemon ended at its start");
            own.exists()
        });
        bridge
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///{}?socket={}", self.export, self.folder.path().join("nbd.sock").display())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
