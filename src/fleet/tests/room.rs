//! Room in the log for whoever waits for it.

use std::time::Duration;

use crate::block_device::{BlockDevice, Change};
use crate::clock;
use crate::volume::VolumeDevice;

use super::{LOG_BYTES, World, read};

/// A client that has one write under way at a time, and ends nothing else: whatever it waits for must come by itself. A record that does not
/// fit between the newest and the end of the ring needs room for both, and that may be more than the log keeps free.
#[test]
fn a_write_that_does_not_fit_before_the_end_of_the_ring_is_given_its_room() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        let patience = clock::uptime() + Duration::from_secs(120);
        let device = VolumeDevice::new(volume.clone());
        let eighth = LOG_BYTES.0 / 8;
        // As long as a record may be, but for what is kept with it; the ends of some make them changes of parts of blocks.
        let longest = LOG_BYTES.0 / 2 - (64 << 10);
        for round in 0..40_u8 {
            for length in [eighth, eighth, eighth, longest - u64::from(round % 2) * 512] {
                let data = vec![round; length as usize].into();
                let writing = device.change(Change::Write { offset: 0, data });
                let written = clock::timeout(patience.saturating_sub(clock::uptime()), writing).await;
                written.expect("the write waits for room in vain").unwrap();
                volume.sync().await.unwrap();
            }
            assert_eq!(read(&volume, 0).await, round);
            assert_eq!(read(&volume, longest - 8192).await, round);
        }
    });
}
