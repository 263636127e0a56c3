//! The control door over TCP: for whoever is not on the host of the daemon, or is another user there.
//!
//! TLS with the daemon's certificate, and in each request a token ([`TokenFile`]). Before a token is shown nothing is read but the head of a
//! request, and that within [`PATIENCE`], as the handshake; of each connection one request is answered. So whoever has no token can hold a place
//! for a short time and learn that there is a daemon. With a token, bodies and answers are bounded in time, too: what the daemon does for a request is
//! not. The socket does not share its places.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::server::{SHUTDOWN_GRACE, refusal, router};
use super::tokens::{Scope, Token, TokenFile};
use super::wire::BODY_BYTES_MAX;
use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::service::Service;
use crate::settings::ControlDoor;
use crate::tls::server_config;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// How long a TLS handshake may take, and how long the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two warnings of strangers.
const WARNING_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A control door that is bound and does not answer yet.
pub struct RemoteDoor {
    listener: tokio::net::TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
    tokens: TokenFile,
}

impl RemoteDoor {
    /// Binds the address and reads all files, so that what is wrong with them is said at the start. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// What [`server_config`] and [`TokenFile::read`] say; `Io` if the address cannot be had.
    pub fn bind(settings: &ControlDoor) -> Result<Self> {
        let tokens = TokenFile::new(&settings.tokens);
        if tokens.read()?.is_empty() {
            tracing::warn!(file = %settings.tokens.display(), "no token is good: nobody can use the control door over TCP");
        }
        let tls = TlsAcceptor::from(Arc::new(server_config(&settings.certificate, &settings.key, None)?));
        let named = || format!("control address {}", settings.address);
        let listener = TcpListener::bind(settings.address).context(named)?;
        listener.set_nonblocking(true).context(named)?;
        let address = listener.local_addr().context(named)?;
        let listener = tokio::net::TcpListener::from_std(listener).context(named)?;
        Ok(RemoteDoor { listener, address, tls, tokens })
    }

    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` resolves; then accepts no more, and gives requests under way five seconds.
    pub async fn serve(self, service: Arc<dyn Service>, shutdown: impl Future<Output = ()> + Send + 'static) {
        let RemoteDoor { listener, address: _, tls, tokens } = self;
        let guard = Guard { tokens, warned: Arc::default() };
        let guarded = router(service).layer(middleware::from_fn_with_state(guard, admit));
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        let (stop, stopped) = watch::channel(());
        tokio::pin!(shutdown);
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = async {
                // The semaphore is never closed.
                let place = places.clone().acquire_owned().await.ok();
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                accepted = accepted => accepted,
                () = &mut shutdown => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let service = TowerToHyperService::new(guarded.clone().layer(Extension(Peer(peer))));
                    let (tls, stopped) = (tls.clone(), stopped.clone());
                    connections.spawn(async move {
                        if let Err(error) = answer(tls, stream, service, stopped).await {
                            tracing::debug!(%peer, %error, "a connection of the control door ended early");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the control door could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop((listener, stop));
        let all_done = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_GRACE, all_done).await.is_err() {
            tracing::warn!("requests at the control door were still under way at the end of the shutdown");
        }
    }
}

/// Answers the one request of a connection. One that has not come when the daemon stops is not waited for.
async fn answer(
    tls: TlsAcceptor,
    stream: TcpStream,
    service: TowerToHyperService<axum::Router>,
    mut stopped: watch::Receiver<()>,
) -> Result<()> {
    // Bounds how long an answer may find no reader.
    let user_timeout = u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(&stream, user_timeout)
        .map_err(std::io::Error::from)
        .context(|| "TCP")?;
    let stream = tokio::select! {
        shaken = tokio::time::timeout(PATIENCE, tls.accept(stream)) => shaken,
        // The channel says nothing but that it is closed.
        _ = stopped.changed() => return Ok(()),
    };
    let stream = stream.map_err(|_| Error::new(ErrorKind::Unavailable, "the handshake took too long"))?;
    let stream = TokioIo::new(stream.context(|| "TLS")?);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    let connection = builder.serve_connection(stream, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))
}

/// Lets requests pass that show a token which allows them.
async fn admit(
    State(guard): State<Guard>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let token = match guard.bearer(request.headers()).await {
        Ok(Some(token)) => token,
        Ok(None) => {
            guard.warn(|| tracing::warn!(%peer, "somebody without a good token came to the control door"));
            let error = Error::new(ErrorKind::Denied, "this daemon wants a token that it knows");
            return refusal(StatusCode::UNAUTHORIZED, &error);
        }
        Err(error) => {
            guard.warn(|| tracing::error!(%error, "the control door cannot tell who may come in"));
            let error = Error::new(ErrorKind::Unavailable, "this daemon cannot read its tokens: see its log");
            return refusal(StatusCode::SERVICE_UNAVAILABLE, &error);
        }
    };
    let method = request.method().clone();
    if method == Method::GET {
        return next.run(request).await;
    }
    if token.scope == Scope::Read {
        let message = format!("the token of {} may look, and change nothing", token.name);
        return refusal(StatusCode::FORBIDDEN, &Error::new(ErrorKind::Denied, message));
    }
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let Ok(Ok(body)) = tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, BODY_BYTES_MAX)).await else {
        let error = Error::invalid(format!("the body has more than {BODY_BYTES_MAX} bytes, or does not come"));
        return refusal(StatusCode::BAD_REQUEST, &error);
    };
    let response = next.run(Request::from_parts(head, body.into())).await;
    let status = response.status().as_u16();
    tracing::info!(token = token.name, %peer, %method, path, status, "asked over TCP");
    response
}

/// Where a connection comes from.
#[derive(Clone, Copy)]
struct Peer(SocketAddr);

/// Who judges tokens.
#[derive(Clone)]
struct Guard {
    tokens: TokenFile,
    /// When something was last said in the log of somebody who may not come in.
    warned: Arc<Mutex<Option<Duration>>>,
}

impl Guard {
    /// Whose token a request shows; none if it shows none that is good.
    async fn bearer(&self, headers: &HeaderMap) -> Result<Option<Token>> {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, shown)) = shown.and_then(|value| value.split_once(' ')) else { return Ok(None) };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Ok(None);
        }
        let (tokens, shown) = (self.tokens.clone(), shown.trim().to_owned());
        let found = tokio::task::spawn_blocking(move || tokens.find(&shown)).await;
        found.map_err(|_| Error::new(ErrorKind::Stopping, "the daemon is stopping"))?
    }

    /// Says something, but not so often that a stranger could fill the log.
    fn warn(&self, say: impl FnOnce()) {
        let now = clock::uptime();
        let mut warned = self.warned.lock();
        if warned.is_none_or(|at| now > at + WARNING_PAUSE) {
            *warned = Some(now);
            say();
        }
    }
}
