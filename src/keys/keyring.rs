//! The keys that this process has opened, by volume.
//!
//! A volume is known to be sealed with a key, or known to be plain, once its manifest was shown to [`Keyring::unlock`]; of any other nothing can be
//! read. Keys stay in memory as long as the keyring does.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use zeroize::Zeroizing;

use super::KeySource;
use super::command::{self, Ask};
use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::seal::{Bundle, Encryption, KEY_BYTES, KEYS_MAX, Salt, VolumeKey, Wrapping};
use crate::units::VolumeId;

/// What Argon2id is asked for: the second choice of RFC 9106, section 4, on one lane.
const PASSPHRASE_MEMORY_KIB: u32 = 64 << 10;
const PASSPHRASE_PASSES: u32 = 3;
/// No manifest makes us use more than this.
const PASSPHRASE_MEMORY_KIB_MAX: u32 = 256 << 10;
const PASSPHRASE_PASSES_MAX: u32 = 16;
/// One at a time: it takes memory, and whoever knocks can ask for it.
static DERIVING: Mutex<()> = Mutex::new(());

/// What opens the keys of a volume.
#[derive(Clone)]
enum Opener {
    Key(Arc<VolumeKey>, Wrapping),
    Command(String),
}

/// A volume whose keys were unwrapped.
#[derive(Clone)]
struct Opened {
    encryption: Encryption,
    bundle: Bundle,
    opener: Opener,
}

/// Sources of keys, and what was opened with them.
#[derive(Default)]
pub struct Keyring {
    sources: Vec<KeySource>,
    /// The key of a volume; none if it is plain.
    known: RwLock<HashMap<VolumeId, Option<Arc<VolumeKey>>>>,
    opened: Mutex<HashMap<VolumeId, Opened>>,
}

impl Keyring {
    /// With these sources; new volumes get their keys wrapped with the first.
    pub fn new(sources: Vec<KeySource>) -> Self {
        Keyring { sources, ..Keyring::default() }
    }

    /// The key by which the objects of a volume are sealed; `None` if they are not.
    ///
    /// # Errors
    /// `Denied` if nobody has unlocked the volume, nor one that goes on from it.
    pub fn key_of(&self, volume: VolumeId) -> Result<Option<Arc<VolumeKey>>> {
        self.known.read().get(&volume).cloned().ok_or_else(|| {
            let message = format!(
                "an object of volume {volume} cannot be opened: it does not belong to a volume that is in use here"
            );
            Error::new(ErrorKind::Denied, message)
        })
    }

    /// True if the keys that a manifest has are open already; else that may take long, for files, commands and passphrases do.
    pub fn is_open(&self, volume: VolumeId, encryption: &Encryption) -> bool {
        self.opened.lock().get(&volume).is_some_and(|opened| opened.encryption == *encryption)
    }

    /// Opens the keys of a volume whose manifest says `encryption`, and that reads objects of `volumes`, itself among them.
    ///
    /// # Errors
    /// `Denied` if no source has the right key, naming what was tried; `Damaged` if the manifest names volumes whose keys it does not have, or
    /// says that a volume is plain that was not; `NotFound` if the keys were destroyed.
    pub fn unlock(&self, volume: VolumeId, encryption: Option<&Encryption>, volumes: &[VolumeId]) -> Result<()> {
        let Some(encryption) = encryption else { return self.note_plain(volumes) };
        let opened = self.opened_as(volume, encryption)?;
        if let Some(foreign) = volumes.iter().find(|named| !opened.bundle.keys.contains_key(named)) {
            return Err(Error::damaged(format!(
                "the manifest of {volume} is damaged: it names {foreign}, whose key it does not have"
            )));
        }
        let mut known = self.known.write();
        let is_other = |id: &VolumeId, key: &Arc<VolumeKey>| {
            known.get(id).and_then(Option::as_ref).is_some_and(|known| known != key)
        };
        if let Some((id, _)) = opened.bundle.keys.iter().find(|(id, key)| is_other(id, key)) {
            return Err(Error::damaged(format!(
                "the manifest of {volume} has another key of {id} than is known: keys never change, so somebody has put it there"
            )));
        }
        known.extend(opened.bundle.keys.iter().map(|(id, key)| (*id, Some(key.clone()))));
        Ok(())
    }

    fn note_plain(&self, volumes: &[VolumeId]) -> Result<()> {
        let mut known = self.known.write();
        for volume in volumes {
            if known.get(volume).is_some_and(Option::is_some) {
                return Err(Error::damaged(format!(
                    "a manifest says that volume {volume} is not encrypted, but it was: somebody has put another in its place"
                )));
            }
            known.insert(*volume, None);
        }
        Ok(())
    }

    /// A new key for a new volume, wrapped with the first source.
    ///
    /// # Errors
    /// What the source says; `Invalid` if there is none.
    pub fn create(&self, volume: VolumeId) -> Result<Encryption> {
        let source =
            self.sources.first().ok_or_else(|| Error::invalid("no key is set to encrypt a new volume with"))?;
        let keys = BTreeMap::from([(volume, Arc::new(VolumeKey::of_words(clock::random_words())))]);
        self.adopt(volume, Bundle { keys }, opener(source)?)
    }

    /// A new key for a volume whose history begins in `parent`, of which this is in the manifest: wrapped as the parent's keys are now, together with
    /// these.
    ///
    /// # Errors
    /// `Denied` if the parent's keys cannot be opened; `Invalid` for too many origins; what a command says.
    pub fn create_fork(&self, volume: VolumeId, parent: VolumeId, encryption: &Encryption) -> Result<Encryption> {
        let opened = self.opened_as(parent, encryption)?;
        let mut keys = opened.bundle.keys;
        keys.insert(volume, Arc::new(VolumeKey::of_words(clock::random_words())));
        self.adopt(volume, Bundle { keys }, opened.opener)
    }

    /// The keys of a volume, of which this is in the manifest, wrapped anew: with another source, or without those of volumes that are not `kept`.
    /// Nothing is taken over yet: the manifest must say so first.
    ///
    /// # Errors
    /// `Denied` if the keys cannot be opened; what the source says.
    pub fn rewrap(
        &self,
        volume: VolumeId,
        encryption: &Encryption,
        with: Option<&KeySource>,
        kept: impl Fn(VolumeId) -> bool,
    ) -> Result<Encryption> {
        let Opened { mut bundle, opener: old, .. } = self.opened_as(volume, encryption)?;
        bundle.keys.retain(|id, _| *id == volume || kept(*id));
        let opener = match with {
            Some(source) => opener(source)?,
            None => old,
        };
        wrap(volume, &bundle, &opener)
    }

    /// The keys that a manifest has just now: those that are open already may be older, for somebody may have wrapped them anew meanwhile.
    fn opened_as(&self, volume: VolumeId, encryption: &Encryption) -> Result<Opened> {
        let known = self.opened.lock().get(&volume).cloned();
        if let Some(opened) = known.filter(|opened| opened.encryption == *encryption) {
            return Ok(opened);
        }
        let opened = self.open(volume, encryption)?;
        self.opened.lock().insert(volume, opened.clone());
        Ok(opened)
    }

    fn adopt(&self, volume: VolumeId, bundle: Bundle, opener: Opener) -> Result<Encryption> {
        let encryption = wrap(volume, &bundle, &opener)?;
        self.known.write().extend(bundle.keys.iter().map(|(id, key)| (*id, Some(key.clone()))));
        let opened = Opened { encryption: encryption.clone(), bundle, opener };
        self.opened.lock().insert(volume, opened);
        Ok(encryption)
    }

    fn open(&self, volume: VolumeId, encryption: &Encryption) -> Result<Opened> {
        let wrapped = encryption.wrapped(volume)?;
        let mut tried = Vec::new();
        for source in &self.sources {
            match try_open(source, volume, encryption, &wrapped) {
                Ok(Some((bundle, opener))) if bundle.keys.contains_key(&volume) => {
                    return Ok(Opened { encryption: encryption.clone(), bundle, opener });
                }
                Ok(Some(_)) => tried.push(format!("{source} (the keys lack that of the volume itself)")),
                Ok(None) => tried.push(format!("{source} (another key)")),
                Err(error) => tried.push(error.to_string()),
            }
        }
        let wanted = match &encryption.wrapping {
            Wrapping::Key { id } => format!("with the key {id}"),
            Wrapping::Passphrase { id, .. } => format!("with a passphrase (key {id})"),
            Wrapping::Command => "by a command".to_owned(),
        };
        let tried = if tried.is_empty() { "no key is set".to_owned() } else { tried.join("; ") };
        Err(Error::new(
            ErrorKind::Denied,
            format!(
                "volume {volume} is encrypted {wanted}, which is not at hand: {tried}. Name it with --key, for varve and for varved; nothing was changed"
            ),
        ))
    }
}

/// What a new wrapping with this source needs.
fn opener(source: &KeySource) -> Result<Opener> {
    if let KeySource::Command(command) = source {
        return Ok(Opener::Command(command.clone()));
    }
    if let Some(key) = source.key()? {
        let wrapping = Wrapping::Key { id: key.fingerprint() };
        return Ok(Opener::Key(Arc::new(key), wrapping));
    }
    let passphrase = source.passphrase()?;
    let passphrase = passphrase.ok_or_else(|| Error::invalid(format!("{source} holds nothing to encrypt with")))?;
    let salt = Salt(clock::random_token().0);
    let key = derive(&passphrase, salt, PASSPHRASE_MEMORY_KIB, PASSPHRASE_PASSES)?;
    let wrapping = Wrapping::Passphrase {
        salt: salt.digits(),
        memory_kib: PASSPHRASE_MEMORY_KIB,
        passes: PASSPHRASE_PASSES,
        id: key.fingerprint(),
    };
    Ok(Opener::Key(Arc::new(key), wrapping))
}

fn wrap(volume: VolumeId, bundle: &Bundle, opener: &Opener) -> Result<Encryption> {
    if bundle.keys.len() > KEYS_MAX {
        let message = format!(
            "volume {volume} would need the keys of more than {KEYS_MAX} volumes: hydrate the one that it begins with first"
        );
        return Err(Error::invalid(message));
    }
    match opener {
        Opener::Key(key, wrapping) => {
            let salt = Salt(clock::random_token().0);
            Ok(Encryption::new(wrapping.clone(), &bundle.wrap(volume, key, salt)))
        }
        Opener::Command(command) => {
            let keys = bundle.encode(volume);
            let wrapped = command::run(command, Ask::Wrap, volume, &keys)?;
            // The manifest will have them in this shape only: a command that cannot undo what it did would cost the volume.
            let unwrapped = command::run(command, Ask::Unwrap, volume, &wrapped)?;
            if *unwrapped != *keys {
                let message = format!(
                    "the key command does not give back the keys of {volume} that it has just wrapped: mend the command; nothing was changed"
                );
                return Err(Error::new(ErrorKind::Denied, message));
            }
            Ok(Encryption::new(Wrapping::Command, &wrapped))
        }
    }
}

/// Unwraps with one source; `None` if it is for something else.
fn try_open(
    source: &KeySource,
    volume: VolumeId,
    encryption: &Encryption,
    wrapped: &[u8],
) -> Result<Option<(Bundle, Opener)>> {
    let key = match (&encryption.wrapping, source) {
        (Wrapping::Command, KeySource::Command(command)) => {
            let bytes = command::run(command, Ask::Unwrap, volume, wrapped)?;
            return Ok(Some((Bundle::decode(volume, &bytes)?, Opener::Command(command.clone()))));
        }
        (Wrapping::Command, _) | (_, KeySource::Command(_)) => return Ok(None),
        (Wrapping::Key { .. }, source) => source.key()?,
        (Wrapping::Passphrase { salt, memory_kib, passes, .. }, source) => {
            let Some(passphrase) = source.passphrase()? else { return Ok(None) };
            if *memory_kib > PASSPHRASE_MEMORY_KIB_MAX || *passes > PASSPHRASE_PASSES_MAX {
                let message = format!(
                    "the keys of {volume} ask for {memory_kib} KiB and {passes} passes of Argon2id, which makes no sense"
                );
                return Err(Error::damaged(message));
            }
            let salt = Salt::of_digits(salt);
            let salt =
                salt.ok_or_else(|| Error::damaged(format!("the keys in the manifest of {volume} have no salt")))?;
            Some(derive(&passphrase, salt, *memory_kib, *passes)?)
        }
    };
    let Some(key) = key else { return Ok(None) };
    let opened = Bundle::unwrap(volume, &key, wrapped).context(|| source.to_string())?;
    Ok(opened.map(|bundle| (bundle, Opener::Key(Arc::new(key), encryption.wrapping.clone()))))
}

/// The key that comes of a passphrase.
fn derive(passphrase: &[u8], salt: Salt, memory_kib: u32, passes: u32) -> Result<VolumeKey> {
    let failed = |error: argon2::Error| Error::invalid(format!("Argon2id cannot be used: {error}"));
    let parameters = argon2::Params::new(memory_kib, passes, 1, Some(KEY_BYTES)).map_err(failed)?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters);
    let _one_at_a_time = DERIVING.lock();
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    argon2.hash_password_into(passphrase, &salt.bytes(), &mut *key).map_err(failed)?;
    Ok(VolumeKey::new(*key))
}
