//! Room in the log for whoever waits for it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_immediate;

use crate::block_device::{Attempt, BlockDevice, Change};
use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::store::{Effect, Gate, Matching, Operation};
use crate::units::{BLOCK_SIZE, ByteLen};
use crate::volume::{Volume, VolumeDevice};

use super::{LOG_BYTES, World, first_segments, read};

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

/// True if the change was made at once, false if there is no room for it. A volume in doubt (this process stood still) is waited for.
async fn is_made(volume: &Arc<Volume>, change: Change<&[u8]>) -> bool {
    let device = VolumeDevice::new(volume.clone());
    loop {
        let mut outcomes = Vec::new();
        device.try_change(std::slice::from_ref(&change), &mut outcomes);
        match outcomes.pop() {
            Some(Attempt::Done) => return true,
            Some(Attempt::WouldBlock) if volume.gate.check().is_ok() => return false,
            Some(Attempt::WouldBlock) => clock::sleep(Duration::from_millis(10)).await,
            other => panic!("the change has come to {other:?}"),
        }
    }
}

/// Lets nothing of this attachment take effect until the gate is opened.
fn hold_uploads(world: &World, volume: &Volume) -> Gate {
    let ([first, _], gate) = (first_segments(volume), Gate::closed());
    let matching = Matching::operation(Operation::Put).on(first.as_str());
    world.faults.inject(matching, Effect::HoldBefore(gate.clone()), 1);
    gate
}

/// One block out of two.
fn trim<D>(number: u64) -> Change<D> {
    Change::Trim { offset: 2 * number * BLOCK_SIZE, length: BLOCK_SIZE }
}

/// A client holds a volume that has failed, and whatever it holds of it must not be what writers of other volumes wait for.
#[test]
fn a_volume_that_has_failed_gives_back_its_places() {
    // Room for a few hundred places in all.
    let world = World { memory_size: ByteLen(64 << 10), ..World::new() };
    let (first, second) = (world.create_as("first"), world.create_as("second"));
    world.life("a", async |fleet| {
        let (failing, _) = fleet.attach(first, false, false).await.unwrap();
        let (other, _) = fleet.attach(second, false, false).await.unwrap();
        let _held = hold_uploads(&world, &failing);
        let mut number = 0;
        while is_made(&failing, trim(number)).await {
            number += 1;
            assert!(number < 1024, "there is room for all of them");
        }
        assert!(!is_made(&other, trim(0)).await, "the other volume has room of its own");
        let device = VolumeDevice::new(other.clone());
        let waiting = device.change(trim(0));
        tokio::pin!(waiting);
        assert!(poll_immediate(waiting.as_mut()).await.is_none());
        failing.fail(&Error::new(ErrorKind::Fenced, "a rival has it"));
        clock::timeout(Duration::from_secs(120), waiting).await.expect("the write waits in vain").unwrap();
        let refused = VolumeDevice::new(failing).read(0, &mut [0; 4096]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
        other.sync().await.unwrap();
    });
}

/// A change of parts of blocks waits in the same line as the others: those who come later and need less do not go before it.
#[test]
fn a_change_of_part_blocks_stands_in_line() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        let held = hold_uploads(&world, &volume);
        let (long, short) = (vec![1; 256 << 10], vec![2; 4096]);
        let write = |data| is_made(&volume, Change::Write { offset: 0, data });
        while write(&long).await {}
        assert!(write(&short).await, "a short one still has room");
        let device = VolumeDevice::new(volume.clone());
        let waiting = device.change(Change::Write { offset: 0, data: vec![3; (256 << 10) - 512].into() });
        tokio::pin!(waiting);
        loop {
            assert!(poll_immediate(waiting.as_mut()).await.is_none());
            if volume.gate.check().is_ok() {
                break;
            }
            clock::sleep(Duration::from_millis(10)).await;
        }
        assert!(!write(&short).await, "it went before a change that waits");
        held.open();
        clock::timeout(Duration::from_secs(120), waiting).await.expect("the write waits in vain").unwrap();
        device.change(Change::Write { offset: 0, data: short.into() }).await.unwrap();
        assert_eq!((read(&volume, 0).await, read(&volume, 4096).await), (2, 3));
    });
}
