//! Authenticating what a manifest says of its volume's content: who can write the bucket, and has no key, cannot make a state up, only put an
//! older one back.
//!
//! Sealed are the head (what the volume holds now, and its origins) and, each by itself, the moments of pins and of the history, so that one who
//! has no key can let go of a pin, destroy a volume or change its name. What such a one writes has the seals that were there.

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::format::lineage::Moment;
use crate::format::manifest::Manifest;
use crate::seal::VolumeKey;
use crate::units::VolumeId;

/// What a seal is of. Part of what is authenticated, so it is never changed.
const HEAD: &str = "head 1";
const PIN: &str = "pin 1";
const PAST: &str = "past 1";

/// Puts the seals of a key's owner in.
///
/// # Errors
/// `Invalid` if the manifest cannot be written as JSON, which only a bug can cause.
pub(super) fn renew(manifest: &mut Manifest, key: &VolumeKey) -> Result<()> {
    let volume = manifest.volume;
    for pin in &mut manifest.pins {
        pin.seal = Some(key.authenticate(&moment_bytes(PIN, volume, &pin.moment)?));
    }
    for past in &mut manifest.history {
        past.seal = Some(key.authenticate(&moment_bytes(PAST, volume, &past.moment)?));
    }
    manifest.seal = Some(key.authenticate(&head_bytes(manifest)?));
    Ok(())
}

/// Verifies all seals.
///
/// # Errors
/// `Damaged` if one is missing, or not of this content.
pub(super) fn verify(manifest: &Manifest, key: &VolumeKey) -> Result<()> {
    let volume = manifest.volume;
    only_sealed(manifest, "what the volume holds", &manifest.seal, &head_bytes(manifest)?, key)?;
    for pin in &manifest.pins {
        only_sealed(manifest, "a snapshot or fork", &pin.seal, &moment_bytes(PIN, volume, &pin.moment)?, key)?;
    }
    for past in &manifest.history {
        only_sealed(manifest, "its history", &past.seal, &moment_bytes(PAST, volume, &past.moment)?, key)?;
    }
    Ok(())
}

/// Refuses a change by one who does not have the key, of what only its owner can seal.
///
/// # Errors
/// `Denied`, saying what is needed.
pub(super) fn only_without_content(before: &Manifest, after: &Manifest) -> Result<()> {
    let is_known = |moment: &Moment, seal: &Option<String>| {
        before.pins.iter().any(|pin| pin.moment == *moment && pin.seal == *seal)
            || before.history.iter().any(|past| past.moment == *moment && past.seal == *seal)
    };
    let same_head = head_bytes(before)? == head_bytes(after)? && before.seal == after.seal;
    let pins = after.pins.iter().all(|pin| is_known(&pin.moment, &pin.seal));
    if same_head && pins && after.history.iter().all(|past| is_known(&past.moment, &past.seal)) {
        return Ok(());
    }
    let message = format!(
        "volume {} is encrypted, and this changes what it holds or keeps, for which its key is needed: name it with --key. Nothing was changed",
        before.volume
    );
    Err(Error::new(ErrorKind::Denied, message))
}

fn only_sealed(manifest: &Manifest, what: &str, seal: &Option<String>, bytes: &[u8], key: &VolumeKey) -> Result<()> {
    if seal.as_ref().is_some_and(|seal| key.is_authentic(bytes, seal)) {
        return Ok(());
    }
    Err(Error::damaged(format!(
        "the manifest of {} is damaged: what it says of {what} was not written by one who has the key of the volume",
        manifest.volume
    )))
}

fn head_bytes(manifest: &Manifest) -> Result<Vec<u8>> {
    let Manifest { volume, size, epoch, checkpoint, replay_from, sequence, inherited, complete, origins, .. } =
        manifest;
    encoded(&(HEAD, volume, size, epoch, checkpoint, replay_from, sequence, inherited, complete, origins))
}

fn moment_bytes(what: &str, volume: VolumeId, moment: &Moment) -> Result<Vec<u8>> {
    encoded(&(what, volume, moment))
}

fn encoded(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::invalid(format!("a manifest cannot be written as JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::lineage::{PastMoment, Pin, SegmentRun};
    use crate::seal::test_key;
    use crate::units::{ByteLen, Epoch, SegmentNumber, Sequence, Token, UnixMillis};

    fn sealed() -> (Manifest, std::sync::Arc<VolumeKey>) {
        let first = Manifest::first(VolumeId(1), "v".into(), ByteLen(1 << 20), UnixMillis(1), Token(2));
        let moment = Moment { sequence: Sequence(4), ..first.moment() };
        let pins = vec![Pin { moment: moment.clone(), holders: Vec::new(), seal: None }];
        let history = vec![PastMoment { at: UnixMillis(3), moment, is_jump: false, seal: None }];
        let mut manifest = Manifest { pins, history, ..first };
        let key = test_key().unwrap();
        renew(&mut manifest, &key).unwrap();
        (manifest, key)
    }

    #[test]
    fn what_was_not_sealed_is_noticed() {
        let (manifest, key) = sealed();
        verify(&manifest, &key).unwrap();
        let run = SegmentRun { volume: VolumeId(1), epoch: Epoch(1), first: SegmentNumber(0), count: 1 };
        type Forgery = fn(&mut Manifest, SegmentRun);
        let forgeries: [Forgery; 8] = [
            |manifest, run| manifest.inherited.push(run),
            |manifest, _| manifest.size = ByteLen(4096),
            |manifest, _| manifest.epoch = Epoch(7),
            |manifest, _| manifest.seal = None,
            |manifest, run| manifest.pins[0].moment.replay.push(run),
            |manifest, _| manifest.pins[0].seal = None,
            |manifest, _| manifest.history[0].moment.sequence = Sequence(5),
            // A seal of something else.
            |manifest, _| manifest.history[0].seal = manifest.pins[0].seal.clone(),
        ];
        for (number, forge) in forgeries.iter().enumerate() {
            let mut forged = manifest.clone();
            forge(&mut forged, run);
            assert_eq!(verify(&forged, &key).unwrap_err().kind(), ErrorKind::Damaged, "forgery {number}");
        }
        let free =
            Manifest { name: "w".into(), destroyed_at: Some(UnixMillis(9)), pins: Vec::new(), ..manifest.clone() };
        verify(&free, &key).unwrap();
        assert!(verify(&manifest, &VolumeKey::new([1; 32])).is_err());
    }

    #[test]
    fn without_a_key_content_is_let_go_of_and_not_changed() {
        let (manifest, _) = sealed();
        let less = Manifest { pins: Vec::new(), history: Vec::new(), name: "w".into(), ..manifest.clone() };
        only_without_content(&manifest, &less).unwrap();
        let larger = Manifest { size: ByteLen(2 << 20), ..manifest.clone() };
        assert_eq!(only_without_content(&manifest, &larger).unwrap_err().kind(), ErrorKind::Denied);
        let mut pinned = manifest.clone();
        pinned.pins.push(Pin { moment: manifest.moment(), holders: Vec::new(), seal: None });
        assert!(only_without_content(&manifest, &pinned).unwrap_err().message().contains("--key"));
    }
}
