//! Bars on standard error that show how far a daemon has come, for as long as somebody waits for it.

use std::convert::Infallible;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use varve::error::{Error, Result};
use varve::service::AttachedStatus;
use varve::units::VolumeId;

use crate::context::Context;

/// How often progress is looked at.
pub const LOOK: Duration = Duration::from_millis(500);

/// A bar in this form, as indicatif takes it.
///
/// # Errors
/// `Invalid` for a form that is none.
pub fn bar(template: &str) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template(template).map_err(|error| Error::invalid(error.to_string()))?;
    Ok(ProgressBar::new(0).with_style(style))
}

/// Waits for `work`, and meanwhile shows what `position` makes of the volume's state: how far it has come, and how far it has to. Nothing
/// is asked if nobody looks.
pub async fn watched<T>(
    context: &Context,
    id: VolumeId,
    bar: &ProgressBar,
    mut position: impl FnMut(&AttachedStatus) -> Option<(u64, u64)>,
    work: impl Future<Output = T>,
) -> T {
    let watching = async {
        loop {
            if !bar.is_hidden()
                && let Ok(status) = context.daemon.volume(id).await
                && let Some((done, total)) = position(&status)
            {
                bar.set_length(total);
                bar.set_position(done);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        done = work => done,
        never = watching => match never as Infallible {},
    }
}
