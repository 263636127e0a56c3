//! What a log that was kept aside holds comes out as it went in.

use std::fs;
use std::path::{Path, PathBuf};

use super::{World, runtime, write};
use crate::admin::export_log;
use crate::block_device::{BlockDevice, Change};
use crate::error::ErrorKind;
use crate::format::log::{RING_START, write_span};
use crate::log::Recovered;
use crate::service::LogExtent;
use crate::units::Sequence;
use crate::volume::VolumeDevice;

/// Opens a log as the tool does.
fn opened(world: &World, path: &Path) -> Recovered {
    runtime().block_on(world.admin().open_log(path)).unwrap()
}

/// The log of a host that was put out while it held five records that are not in the store.
fn kept_aside(world: &World) -> PathBuf {
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        world.refuse_puts();
        for (block, byte) in [(3, 1), (4, 2), (3, 7), (9, 9)] {
            write(&volume, block * 4096, byte).await;
        }
        let zero = Change::Zero { offset: 9 * 4096, length: 8192 };
        VolumeDevice::new(volume.clone()).change(zero).await.unwrap();
    });
    world.faults.clear();
    world.life("b", async |fleet| drop(fleet.attach(id, true, false).await.unwrap()));
    world.life("a", async |fleet| {
        let (_, report) = fleet.attach(id, true, false).await.unwrap();
        report.rescued_log.unwrap().path.into()
    })
}

#[test]
fn the_image_holds_the_newest_content() {
    let world = World::new();
    let log = kept_aside(&world);
    let before = fs::read(&log).unwrap();
    let (listed, damage) = export_log(&opened(&world, &log), None).unwrap();
    let extents = [
        LogExtent { offset: 3 * 4096, length: 8192, zero: false },
        LogExtent { offset: 9 * 4096, length: 8192, zero: true },
    ];
    assert_eq!((&listed.extents[..], listed.records), (&extents[..], (Sequence(1), Sequence(5))));
    assert_eq!(damage, None);

    let image = world.directory.path().join("image");
    assert_eq!(export_log(&opened(&world, &log), Some(&image)).unwrap().0, listed);
    let bytes = fs::read(&image).unwrap();
    assert_eq!(bytes.len(), 11 * 4096);
    for (block, content) in bytes.chunks(4096).enumerate() {
        let expected = match block {
            3 => 7,
            4 => 2,
            _ => 0,
        };
        assert!(content.iter().all(|byte| *byte == expected), "block {block}");
    }
    let again = export_log(&opened(&world, &log), Some(&image)).unwrap_err();
    assert!(again.kind() == ErrorKind::Invalid && again.message().contains("already"), "{again}");
    assert_eq!(fs::read(&log).unwrap(), before, "the log was changed");
}

#[test]
fn damaged_content_is_not_passed_off_as_good() {
    let world = World::new();
    let log = kept_aside(&world);
    let mut bytes = fs::read(&log).unwrap();
    // In the payload of the second record.
    let at = (RING_START + 2 * write_span(1, true) - 4096) as usize;
    bytes[at + 100] ^= 1;
    fs::write(&log, bytes).unwrap();
    let image = world.directory.path().join("image");
    // Whether the log was durable up to there decides how the scan calls it; never may the flipped byte come out.
    match export_log(&opened(&world, &log), Some(&image)) {
        Ok((content, _)) => {
            assert_eq!(content.records.1, Sequence(1), "the scan did not stop before the damage");
            assert_eq!(content.extents, [LogExtent { offset: 3 * 4096, length: 4096, zero: false }]);
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged),
    }
}
