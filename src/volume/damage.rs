//! Changing the block map although parts of its checkpoint in the store may be damaged.
//!
//! What is damaged may be whole again a moment later: a store can lack a drive for a while, or something between it and us can have
//! mixed up bytes. Giving up what can be repaired would be loss. So damage must last for [`PATIENCE`], the volume must still be
//! ours (the next owner deletes what it needs no more), and then every page is asked for again before it is given up
//! (`pages/damage.rs`). Meanwhile the log takes what is written.

use std::time::Duration;

use crate::clock;
use crate::error::Result;
use crate::volume::core::Volume;
use crate::volume::pages::OnDamage;

/// So long damage must be met in an object before it counts as lasting.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_secs(2);
/// So often damage is looked at that is none of the checkpoint's, or comes and goes.
const TRIES_MAX: u32 = 5;

impl Volume {
    /// Makes a change of the map, giving up what is damaged for good.
    ///
    /// # Errors
    /// `Fenced`; why the attachment is over; what `attempt` says of anything but damage, or of damage that is not the checkpoint's.
    pub(super) async fn despite_damage<F, T>(&self, attempt: impl Fn(OnDamage) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut on_damage = OnDamage::Fail;
        let mut tries = 0;
        loop {
            let error = match attempt(on_damage).await {
                Err(error) if error.is_damage() => error,
                done => {
                    if self.pages.has_given_up() {
                        // What the next owner deletes meanwhile would look damaged, too.
                        self.confirm_ownership().await?;
                    }
                    return done;
                }
            };
            self.confirm_ownership().await?;
            on_damage = OnDamage::GiveUp(PATIENCE);
            if let Some(closed) = self.gate.closed().filter(|_| !self.is_draining()) {
                return Err(closed);
            }
            if self.pages.is_in_doubt(PATIENCE) {
                tracing::warn!(volume = %self.id, %error, "the block map is damaged; it is looked at again");
                clock::sleep(PAUSE).await;
                continue;
            }
            tries += 1;
            if tries == TRIES_MAX {
                return Err(error);
            }
        }
    }
}
