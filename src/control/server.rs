//! The server: requests to calls of a [`Service`], and its answers to JSON.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::listen::{ControlSocket, OwnUsers};
use super::wire::{AttachBody, BODY_BYTES_MAX, DetachBody, ErrorBody, http_status};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::service::{AttachedStatus, NewForks, NewSnapshot, Service, VolumeChange, WarmRequest};
use crate::units::VolumeId;

/// How long requests that are under way may go on after the shutdown began.
pub(super) const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Letters of a path that an answer repeats.
const PATH_SHOWN_MAX: usize = 100;

/// Answers on the socket until `shutdown` resolves; then accepts no more, gives requests under way five seconds, and
/// removes the socket's file.
///
/// # Errors
/// `Io` if the listener fails.
pub async fn serve(
    socket: ControlSocket,
    service: Arc<dyn Service>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let ControlSocket { listener, file } = socket;
    let (begin, begun) = tokio::sync::oneshot::channel::<()>();
    let signal = async move {
        shutdown.await;
        // The receiver is only gone if serving has ended already.
        let _ = begin.send(());
    };
    let deadline = async move {
        if begun.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    let served = async { axum::serve(OwnUsers(listener), router(service)).with_graceful_shutdown(signal).await };
    let result = tokio::select! {
        served = served => served.context(|| "control socket"),
        () = deadline => {
            tracing::warn!("requests on the control socket were still under way at the end of the shutdown");
            Ok(())
        }
    };
    drop(file);
    result
}

pub(super) fn router(service: Arc<dyn Service>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/volumes", get(volumes))
        .route("/v1/volumes/{id}", get(volume).patch(update))
        .route("/v1/volumes/{id}/attach", post(attach))
        .route("/v1/volumes/{id}/detach", post(detach))
        .route("/v1/volumes/{id}/sync", post(sync))
        .route("/v1/volumes/{id}/clean", post(clean))
        .route("/v1/volumes/{id}/warm", post(warm))
        .route("/v1/volumes/{id}/hydrate", post(hydrate))
        .route("/v1/volumes/{id}/snapshots", post(snapshot))
        .route("/v1/volumes/{id}/forks", post(fork))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(service)
}

type Daemon = State<Arc<dyn Service>>;
type Body = std::result::Result<Bytes, BytesRejection>;

async fn status(State(service): Daemon) -> Response {
    answer(Ok(service.daemon()))
}

async fn volumes(State(service): Daemon) -> Response {
    answer(Ok(service.attached()))
}

async fn volume(State(service): Daemon, Path(id): Path<String>) -> Response {
    answer(id.parse().and_then(|id| attached_here(service.as_ref(), id)))
}

fn attached_here(service: &dyn Service, id: VolumeId) -> Result<AttachedStatus> {
    let found = service.attached().into_iter().find(|status| status.volume == id);
    found.ok_or_else(|| Error::not_found(format!("{id} is not attached to this daemon")))
}

async fn attach(State(service): Daemon, Path(id): Path<String>, body: Body) -> Response {
    let request = id.parse::<VolumeId>().and_then(|id| Ok((id, parse::<AttachBody>(body, true)?)));
    match request {
        Ok((id, body)) => answer(to_the_end(async move { service.attach(id, body.takeover).await }).await),
        Err(error) => failure(&error),
    }
}

async fn detach(State(service): Daemon, Path(id): Path<String>, body: Body) -> Response {
    let request = id.parse::<VolumeId>().and_then(|id| Ok((id, parse::<DetachBody>(body, true)?)));
    match request {
        Ok((id, body)) => {
            let done = to_the_end(async move { service.detach(id, body.force).await }).await;
            answer(done.map(|()| serde_json::Map::new()))
        }
        Err(error) => failure(&error),
    }
}

async fn sync(State(service): Daemon, Path(id): Path<String>) -> Response {
    match id.parse() {
        // It changes nothing, so that it may end with the client who waits for it.
        Ok(id) => answer(service.sync(id).await),
        Err(error) => failure(&error),
    }
}

async fn clean(State(service): Daemon, Path(id): Path<String>) -> Response {
    match id.parse() {
        Ok(id) => answer(to_the_end(async move { service.clean(id).await }).await),
        Err(error) => failure(&error),
    }
}

async fn warm(State(service): Daemon, Path(id): Path<String>, body: Body) -> Response {
    let request = id.parse::<VolumeId>().and_then(|id| Ok((id, parse::<WarmRequest>(body, true)?)));
    match request {
        // It may end anywhere, as the client who waits for it does.
        Ok((id, body)) => answer(service.warm(id, body).await),
        Err(error) => failure(&error),
    }
}

async fn hydrate(State(service): Daemon, Path(id): Path<String>) -> Response {
    match id.parse() {
        Ok(id) => answer(to_the_end(async move { service.hydrate(id).await }).await),
        Err(error) => failure(&error),
    }
}

async fn update(State(service): Daemon, Path(id): Path<String>, body: Body) -> Response {
    let request = id.parse::<VolumeId>().and_then(|id| Ok((id, parse::<VolumeChange>(body, false)?)));
    match request {
        Ok((id, body)) => answer(to_the_end(async move { service.update(id, body).await }).await),
        Err(error) => failure(&error),
    }
}

async fn snapshot(State(service): Daemon, Path(id): Path<String>, body: Body) -> Response {
    let request = id.parse::<VolumeId>().and_then(|id| Ok((id, parse::<NewSnapshot>(body, true)?)));
    match request {
        Ok((id, new)) => answer(to_the_end(async move { service.snapshot(id, new).await }).await),
        Err(error) => failure(&error),
    }
}

async fn fork(State(service): Daemon, Path(id): Path<String>, body: Body) -> Response {
    let request = id.parse::<VolumeId>().and_then(|id| Ok((id, parse::<NewForks>(body, false)?)));
    match request {
        Ok((id, new)) => answer(to_the_end(async move { service.fork(id, new).await }).await),
        Err(error) => failure(&error),
    }
}

/// Runs an operation in a task of its own, so that it is not cut off in the middle when the client goes away.
async fn to_the_end<T: Send + 'static>(operation: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(operation).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "a request on the control socket failed unexpectedly");
            Err(Error::new(ErrorKind::Stopping, "the daemon failed unexpectedly or is stopping: see its log"))
        }
    }
}

fn parse<T: DeserializeOwned>(body: Body, may_be_empty: bool) -> Result<T> {
    let bytes = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::invalid(format!("the body has more than {BODY_BYTES_MAX} bytes")),
        _ => Error::invalid(format!("the body cannot be read: {rejection}")),
    })?;
    let json: &[u8] = if bytes.is_empty() && may_be_empty { b"{}" } else { &bytes };
    serde_json::from_slice(json)
        .map_err(|error| Error::invalid(format!("the body is not the JSON that this request takes: {error}")))
}

async fn unknown_path(uri: Uri) -> Response {
    failure(&Error::not_found(format!("this daemon has no resource {}", shown(&uri))))
}

async fn unknown_method(method: Method, uri: Uri) -> Response {
    let error = Error::invalid(format!("{} does not take {method}", shown(&uri)));
    json(StatusCode::METHOD_NOT_ALLOWED, &ErrorBody::from(&error))
}

/// The beginning of a path, fit to be printed.
fn shown(uri: &Uri) -> String {
    uri.path().chars().take(PATH_SHOWN_MAX).flat_map(char::escape_debug).collect()
}

fn answer<T: Serialize>(result: Result<T>) -> Response {
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => failure(&error),
    }
}

fn failure(error: &Error) -> Response {
    let status = StatusCode::from_u16(http_status(error.kind())).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &ErrorBody::from(error))
}

/// The answer to who may not ask.
pub(super) fn refusal(status: StatusCode, error: &Error) -> Response {
    let mut response = json(status, &ErrorBody::from(error));
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer on the control socket could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
