//! Keys from every kind of source, through wrapping and back.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::error::ErrorKind;
use crate::seal::{Encryption, KEY_BYTES, VolumeKey, Wrapping};
use crate::units::VolumeId;

const VOLUME: VolumeId = VolumeId(5);
const FORK: VolumeId = VolumeId(6);

fn given(byte: u8) -> KeySource {
    KeySource::Given(VolumeKey::new([byte; KEY_BYTES]))
}

fn file(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// Makes a volume with one keyring and opens it with another of the same source.
fn round_trip(source: &KeySource) -> Encryption {
    let maker = Keyring::new(vec![source.clone()]);
    let encryption = maker.create(VOLUME).unwrap();
    let reader = Keyring::new(vec![given(9), source.clone()]);
    reader.unlock(VOLUME, Some(&encryption), &[VOLUME]).unwrap();
    assert_eq!(reader.key_of(VOLUME).unwrap(), maker.key_of(VOLUME).unwrap());
    assert!(reader.key_of(VOLUME).unwrap().is_some());
    encryption
}

#[test]
fn sources_are_named_and_what_is_none_is_not_repeated() {
    for text in ["file:/a b", "env:KEY", "passphrase-file:/p", "passphrase-env:PASS", "command:/usr/bin/kms"] {
        assert_eq!(text.parse::<KeySource>().unwrap().to_string(), text);
    }
    let command: KeySource = "command:/usr/bin/kms --token hunter2".parse().unwrap();
    assert_eq!(format!("{command} {command:?}"), "command:/usr/bin/kms command:/usr/bin/kms");
    for text in ["", "file:", "0123456789abcdef", "env:A=B", "vault:x", "command:"] {
        let error = text.parse::<KeySource>().unwrap_err();
        assert!(error.message().contains("file:PATH"), "{error}");
        assert!(text.is_empty() || !error.message().contains("0123456789abcdef"), "{error}");
    }
}

/// A key command of these lines. (A file that was just written may not be executed as long as a child of another thread still has it open.)
fn command(directory: &Path, lines: &str) -> String {
    format!("command:/bin/sh {}", file(directory, "kms", lines))
}

#[test]
fn every_kind_of_source_wraps_and_unwraps() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys/key");
    let id = create_key_file(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(create_key_file(&path).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(round_trip(&KeySource::File(path)).wrapping, Wrapping::Key { id });

    let path = file(directory.path(), "passphrase", "correct horse\nsecond line\n");
    let encryption = round_trip(&format!("passphrase-file:{path}").parse().unwrap());
    assert!(matches!(&encryption.wrapping, Wrapping::Passphrase { memory_kib: 65_536, passes: 3, .. }));
    let other = file(directory.path(), "other", "wrong horse");
    let refused = Keyring::new(vec![format!("passphrase-file:{other}").parse().unwrap()]);
    let error = refused.unlock(VOLUME, Some(&encryption), &[VOLUME]).unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.message().contains("another key"), "{error}");

    let script = command(
        directory.path(),
        "test -n \"$VARVE_VOLUME\" || exit 3\n\
         case $1 in wrap) exec base64 -w0;; unwrap) exec base64 -d;; *) echo no such thing >&2; exit 1;; esac",
    );
    assert_eq!(round_trip(&script.parse().unwrap()).wrapping, Wrapping::Command);
    let failing: KeySource = format!("{script} rubbish").parse().unwrap();
    let error = Keyring::new(vec![failing]).create(VOLUME).unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.message().contains("no such thing"), "{error}");
}

#[test]
fn a_command_that_cannot_undo_what_it_wraps_costs_no_keys() {
    let directory = tempfile::tempdir().unwrap();
    let sound = Keyring::new(vec![given(1)]);
    let encryption = sound.create(VOLUME).unwrap();
    for (unwrap, said) in [("echo something else", "does not give back"), ("exit 1", "unwrap")] {
        let script = command(directory.path(), &format!("case $1 in wrap) cat; echo salt;; unwrap) {unwrap};; esac"));
        let broken: KeySource = script.parse().unwrap();
        let errors = [
            sound.rewrap(VOLUME, &encryption, Some(&broken), |_| true).unwrap_err(),
            Keyring::new(vec![broken]).create(VOLUME).unwrap_err(),
        ];
        for error in errors {
            assert!(error.kind() == ErrorKind::Denied && error.message().contains(said), "{error}");
        }
    }
}

#[test]
fn what_is_no_key_is_refused_and_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    for content in ["", "secret", &"g".repeat(64), &"ab".repeat(31), &"ab".repeat(33)] {
        let path = file(directory.path(), "key", content);
        let source: KeySource = format!("file:{path}").parse().unwrap();
        let error = Keyring::new(vec![source]).create(VOLUME).unwrap_err();
        assert!(error.message().contains("64 hexadecimal digits"), "{error}");
        assert!(content.is_empty() || !error.message().contains(content), "{error}");
    }
    let missing: KeySource = "file:/nonexistent/key".parse().unwrap();
    assert_eq!(Keyring::new(vec![missing]).create(VOLUME).unwrap_err().kind(), ErrorKind::NotFound);
    let empty = file(directory.path(), "empty", "\n");
    let empty: KeySource = format!("passphrase-file:{empty}").parse().unwrap();
    assert!(Keyring::new(vec![empty]).create(VOLUME).unwrap_err().message().contains("empty passphrase"));
    assert!(Keyring::new(Vec::new()).create(VOLUME).unwrap_err().message().contains("no key is set"));
}

#[test]
fn the_wrong_key_opens_nothing_and_the_message_names_the_right_one() {
    let encryption = Keyring::new(vec![given(1)]).create(VOLUME).unwrap();
    let wrong = Keyring::new(vec![given(2)]);
    let error = wrong.unlock(VOLUME, Some(&encryption), &[VOLUME]).unwrap_err();
    let right = VolumeKey::new([1; KEY_BYTES]).fingerprint();
    assert!(error.kind() == ErrorKind::Denied && error.message().contains(&right), "{error}");
    assert!(wrong.key_of(VOLUME).is_err(), "nobody may take it for plain");
    // The keys of another volume in the place of its own.
    let swapped = Keyring::new(vec![given(1)]).create(FORK).unwrap();
    assert!(Keyring::new(vec![given(1)]).unlock(VOLUME, Some(&swapped), &[VOLUME]).is_err());
}

#[test]
fn a_fork_opens_its_origin_until_it_forgets_it() {
    let keyring = Keyring::new(vec![given(1)]);
    let parent = keyring.create(VOLUME).unwrap();
    let fork = keyring.create_fork(FORK, VOLUME, &parent).unwrap();
    let other = Keyring::new(vec![given(1)]);
    other.unlock(FORK, Some(&fork), &[FORK, VOLUME]).unwrap();
    assert_eq!(other.key_of(VOLUME).unwrap(), keyring.key_of(VOLUME).unwrap());
    assert_ne!(other.key_of(FORK).unwrap(), other.key_of(VOLUME).unwrap(), "it writes with its own");
    let hydrated = other.rewrap(FORK, &fork, None, |_| false).unwrap();
    let third = Keyring::new(vec![given(1)]);
    let error = third.unlock(FORK, Some(&hydrated), &[FORK, VOLUME]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "a volume is named whose key is not there");
    third.unlock(FORK, Some(&hydrated), &[FORK]).unwrap();
    assert!(third.key_of(VOLUME).is_err() && third.key_of(FORK).unwrap().is_some());
}

#[test]
fn keys_are_wrapped_anew_without_changing() {
    let keyring = Keyring::new(vec![given(1)]);
    let old = keyring.create(VOLUME).unwrap();
    let new = keyring.rewrap(VOLUME, &old, Some(&given(2)), |_| true).unwrap();
    let reader = Keyring::new(vec![given(2)]);
    assert!(reader.unlock(VOLUME, Some(&old), &[VOLUME]).is_err());
    reader.unlock(VOLUME, Some(&new), &[VOLUME]).unwrap();
    assert_eq!(reader.key_of(VOLUME).unwrap(), keyring.key_of(VOLUME).unwrap());
}

#[test]
fn an_encrypted_volume_is_not_taken_for_a_plain_one() {
    let keyring = Keyring::new(vec![given(1)]);
    keyring.unlock(FORK, None, &[FORK]).unwrap();
    assert_eq!(keyring.key_of(FORK).unwrap(), None);
    keyring.create(VOLUME).unwrap();
    let error = keyring.unlock(VOLUME, None, &[VOLUME]).unwrap_err();
    assert!(error.kind() == ErrorKind::Damaged && error.message().contains("not encrypted, but it was"), "{error}");
}

#[test]
fn a_manifest_cannot_ask_for_all_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "passphrase", "horse");
    let keyring = Keyring::new(vec![format!("passphrase-file:{path}").parse().unwrap()]);
    let mut encryption = keyring.create(VOLUME).unwrap();
    if let Wrapping::Passphrase { memory_kib, .. } = &mut encryption.wrapping {
        *memory_kib = u32::MAX;
    }
    let error = Keyring::new(vec![format!("passphrase-file:{path}").parse().unwrap()]);
    let error = error.unlock(VOLUME, Some(&encryption), &[VOLUME]).unwrap_err();
    assert!(error.message().contains("makes no sense"), "{error}");
}

#[test]
fn what_was_wrapped_anew_elsewhere_is_not_undone() {
    let keyring = Keyring::new(vec![given(1), given(2)]);
    let old = keyring.create(VOLUME).unwrap();
    let elsewhere = Keyring::new(vec![given(1)]);
    let new = elsewhere.rewrap(VOLUME, &old, Some(&given(2)), |_| true).unwrap();
    // This process still has the old one open, and looks at what the manifest says now.
    let only_new = Keyring::new(vec![given(2)]);
    let fork = keyring.create_fork(FORK, VOLUME, &new).unwrap();
    only_new.unlock(FORK, Some(&fork), &[FORK, VOLUME]).unwrap();
    let again = keyring.rewrap(VOLUME, &new, None, |_| true).unwrap();
    only_new.unlock(VOLUME, Some(&again), &[VOLUME]).unwrap();
    // Without the new key it cannot, and says so.
    let blind = Keyring::new(vec![given(1)]);
    blind.unlock(VOLUME, Some(&old), &[VOLUME]).unwrap();
    assert_eq!(blind.create_fork(FORK, VOLUME, &new).unwrap_err().kind(), ErrorKind::Denied);
}

#[test]
fn the_key_of_a_volume_never_changes() {
    let keyring = Keyring::new(vec![given(1)]);
    keyring.create(VOLUME).unwrap();
    let forged = Keyring::new(vec![given(1)]).create(VOLUME).unwrap();
    let error = keyring.unlock(VOLUME, Some(&forged), &[VOLUME]).unwrap_err();
    assert!(error.kind() == ErrorKind::Damaged && error.message().contains("keys never change"), "{error}");
}
