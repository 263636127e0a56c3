//! Who has a volume, and what can be done about it: for commands that the daemon here could not carry out.

use varve::admin::Admin;
use varve::control::client::CallError;
use varve::error::{Context as _, Error, ErrorKind, Result};
use varve::service::{OwnerSummary, VolumeState};
use varve::units::VolumeId;

use crate::context::{Context, quoted};
use crate::render;

/// The error of a call, and how to start a daemon if there is none.
pub fn no_daemon(context: &Context, error: &CallError) -> Error {
    match error {
        CallError::NoDaemon(_) if context.settings.control.socket().is_none() => Error::new(
            ErrorKind::Unavailable,
            format!("{error}: is varved running there, with --control-tcp, and may this machine connect to it?"),
        ),
        CallError::NoDaemon(_) => {
            Error::new(ErrorKind::Unavailable, format!("{error}: start one with: {}", context.start_command()))
        }
        CallError::Failed(error) => error.clone(),
    }
}

/// What the daemon here answers to `call`; if it does not have the volume because nobody has, what `detached` makes of it on the store.
/// `verb` is how the command is called, for messages.
///
/// # Errors
/// `Busy` if somebody else owns it: who, and what can be done; what the daemon and the store say.
pub async fn or_store<T>(
    context: &Context,
    id: VolumeId,
    verb: &str,
    call: impl Future<Output = Result<T, CallError>>,
    detached: impl AsyncFnOnce(&Admin) -> Result<T>,
) -> Result<T> {
    match call.await {
        Ok(answer) => Ok(answer),
        Err(error) => {
            only_if_detached(context, id, error, verb).await?;
            detached(context.store().await?).await
        }
    }
}

/// As [`or_store`], for what looks for itself whether anybody owns the volume, and fails as `Busy` then: saves a request.
///
/// # Errors
/// As [`or_store`].
pub async fn or_change<T>(
    context: &Context,
    id: VolumeId,
    verb: &str,
    call: impl Future<Output = Result<T, CallError>>,
    detached: impl AsyncFnOnce(&Admin) -> Result<T>,
) -> Result<T> {
    let error = match call.await {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    let error = not_here(error)?;
    match detached(context.store().await.context(|| &error)?).await {
        Err(busy) if busy.kind() == ErrorKind::Busy => {
            only_if_detached(context, id, error, verb).await?;
            // It was let go of just now: the first answer still says who had it.
            Err(busy)
        }
        other => other,
    }
}

/// Lets an answer pass that only says that the volume is not attached to a daemon here.
///
/// # Errors
/// The answer, if it says something else.
fn not_here(error: CallError) -> Result<CallError> {
    match error {
        CallError::Failed(_) if !error.is_not_found() => Err(error.into()),
        _ => Ok(error),
    }
}

/// Succeeds if the daemon here does not have the volume because nobody has.
///
/// # Errors
/// Who has it and what can be done; or the error of the call if it says something else.
async fn only_if_detached(context: &Context, id: VolumeId, error: CallError, verb: &str) -> Result<()> {
    let error = not_here(error)?;
    let volume = context.store().await.context(|| &error)?.volume(id).await?;
    match (volume.state, &volume.owner) {
        (VolumeState::Detached, _) => Ok(()),
        (VolumeState::Destroyed, _) => {
            Err(Error::not_found(format!("{id} is destroyed: bring it back with: varve volumes undelete {id}")))
        }
        (VolumeState::Attached, None) => {
            Err(Error::new(ErrorKind::Busy, format!("{error}, and {id} is attached by somebody unknown")))
        }
        (VolumeState::Attached, Some(owner)) => {
            let asked = Asked::of(context).await;
            Err(Error::new(ErrorKind::Busy, elsewhere(context, id, owner, &error, verb, &asked)))
        }
    }
}

/// What to say of a volume whose owner did not answer here.
fn elsewhere(
    context: &Context,
    id: VolumeId,
    owner: &OwnerSummary,
    error: &CallError,
    verb: &str,
    asked: &Asked,
) -> String {
    let since = render::moment(owner.attached_at);
    let who = render::harmless(&format!("{id} has been attached by {} since {since}", render::owner(owner)));
    let same_host = asked.host.as_deref() == Some(owner.host.as_str());
    let same_socket = asked.socket.as_deref() == Some(owner.control.as_str());
    let takeover = format!("varve volumes attach {id} --takeover (what only its write log holds is lost)");
    match error {
        _ if same_host && !same_socket => {
            format!(
                "{who}: ask that daemon: varve --control {} volumes {verb} {id}; if it is gone for good, take the volume over here with: {takeover}",
                render::harmless(&quoted(&owner.control))
            )
        }
        CallError::NoDaemon(_) if same_host => {
            format!("{who}, but {error}: start that daemon again with: {}", context.start_command())
        }
        CallError::Failed(_) if same_host => {
            format!(
                "{who}, but the daemon there has been restarted since: take it up again with: varve volumes attach {id}"
            )
        }
        _ => format!(
            "{who}: run this on that host, or, if the host is gone for good, take it over here with: {takeover}"
        ),
    }
}

/// Which daemon is asked, as owners name it.
struct Asked {
    host: Option<String>,
    socket: Option<String>,
}

impl Asked {
    /// One on a socket is of this host; one that is asked over TCP says so itself, if it answers.
    async fn of(context: &Context) -> Asked {
        if let Some(path) = context.settings.control.socket() {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
            let host = name.map(|name| name.trim_end().to_owned());
            return Asked { host, socket: Some(path.display().to_string()) };
        }
        let daemon = context.daemon.status().await.ok();
        let (host, socket) = daemon.map(|daemon| (daemon.host, daemon.control)).unzip();
        Asked { host, socket }
    }
}
