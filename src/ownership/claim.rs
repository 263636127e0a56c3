//! Claiming the next epoch of a volume.

use std::time::Duration;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{Manifest, Owner};
use crate::ownership::manifests::{Loaded, update};
use crate::store::Store;
use crate::units::{Epoch, Token};

/// Under which circumstances a claim may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Only if nobody owns the volume.
    IfFree,
    /// Also if the owner is this attachment of ours, which has died.
    OwnLate(Token),
    /// Whoever owns it: what is not in the store is given up.
    TakeOver,
}

/// A claimed epoch.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The epoch.
    pub epoch: Epoch,
    /// Names this attachment in everything it writes.
    pub token: Token,
    /// The manifest that says so.
    pub loaded: Loaded,
    /// Who owned the volume before, if anybody did.
    pub previous: Option<Owner>,
    /// When the claim was asked for: nobody else was the owner then. By [`clock::uptime`].
    pub claimed_at: Duration,
}

/// Claims the next epoch by compare-and-swap. The claimant owns the volume once it has also sealed the epochs before
/// ([`discover`](super::discover)).
///
/// # Errors
/// `Busy` if the permit does not suffice, naming the owner; `Invalid` if the volume is destroyed; `Conflict` if somebody else was faster.
pub async fn claim(store: &dyn Store, loaded: &Loaded, owner: Owner, permit: Permit) -> Result<Attachment> {
    let manifest = &loaded.manifest;
    may_claim(manifest, permit)?;
    let claimed_at = clock::uptime();
    let (epoch, token) = (manifest.epoch.next(), owner.token);
    let previous = manifest.owner.clone();
    let loaded = update(store, loaded, |manifest| {
        manifest.epoch = epoch;
        manifest.owner = Some(owner);
        manifest.complete = false;
    })
    .await?;
    Ok(Attachment { epoch, token, loaded, previous, claimed_at })
}

/// Whether a claim with this permit could succeed.
///
/// # Errors
/// As [`claim`], but for `Conflict`.
pub fn may_claim(manifest: &Manifest, permit: Permit) -> Result<()> {
    if manifest.being_made {
        return Err(Error::invalid(format!(
            "volume {} is still being made, or its import never ended: it cannot be attached",
            manifest.volume
        )));
    }
    if manifest.destroyed_at.is_some() {
        return Err(Error::invalid(format!(
            "volume {0} is destroyed: 'varve volumes undelete {0}' brings it back",
            manifest.volume
        )));
    }
    if let Some(current) = &manifest.owner {
        let permitted = match permit {
            Permit::IfFree => false,
            Permit::OwnLate(token) => token == current.token || current.resumes == Some(token),
            Permit::TakeOver => true,
        };
        if !permitted {
            return Err(busy(manifest, current));
        }
    }
    Ok(())
}

fn busy(manifest: &Manifest, owner: &Owner) -> Error {
    let since = owner.attached_at.date();
    Error::new(
        ErrorKind::Busy,
        format!(
            "volume {0} is attached by {1} (process {2}) since {since}: detach it there, or, if that host is gone for good, run \
             'varve volumes attach {0} --takeover', which gives up what is not in the store yet",
            manifest.volume, owner.host, owner.pid
        ),
    )
}
