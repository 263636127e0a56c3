//! A volume behind QEMU's reconnecting client, as a block device: the daemon below it can be killed at any time, and whoever uses the device
//! notices nothing but that it takes a while.

use super::daemon::{Daemon, Host, StoreKind, World};
use super::disk::{BlockDisk, Bridge, FileSystem, Mount};

/// See the file's description.
pub struct Bridged {
    pub host: Host,
    daemon: Daemon,
    // In the order in which they are let go.
    pub disk: BlockDisk,
    bridge: Bridge,
    pub world: World,
}

impl Bridged {
    /// Of a new volume of 1 GiB.
    pub fn new(kind: StoreKind) -> Bridged {
        let world = World::new(kind);
        let host = world.host("a");
        let volume = host.create("disk", "1GiB");
        let daemon = host.start();
        let bridge = Bridge::start(&host.nbd(), &volume);
        let disk = BlockDisk::attach(&bridge.uri());
        Bridged { host, daemon, disk, bridge, world }
    }

    /// Kills the daemon, and starts another.
    pub fn kill(&mut self) {
        self.daemon.kill9();
        self.daemon = self.host.start();
    }

    /// Unmounts, checks the file system, and mounts it again.
    pub fn check(&self, system: FileSystem, mount: Mount) -> Mount {
        mount.unmount();
        self.disk.check(system);
        self.disk.mount()
    }

    /// Lets go of everything in order.
    pub fn end(self) {
        self.disk.detach();
        drop(self.bridge);
        self.daemon.stop();
        drop(self.world);
    }
}
