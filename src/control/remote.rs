//! The control door over TCP: for whoever is not on the host of the daemon, or is another user there.
//!
//! TLS with the daemon's certificate, and in each request a token ([`TokenFile`]). Before a token is shown nothing is read but the head of a
//! request, and that within [`PATIENCE`], as the handshake; of each connection one request is answered. So whoever has no token can hold a place
//! for twice that time and learn that there is a daemon. The socket does not share its places.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::server::{SHUTDOWN_GRACE, refusal, router};
use super::tokens::{Scope, TokenFile};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::service::Service;
use crate::settings::ControlDoor;
use crate::tls::server_config;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// How long a TLS handshake may take, and how long the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
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
        let guarded = router(service).layer(middleware::from_fn_with_state(tokens, admit));
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
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
                    let (tls, service) = (tls.clone(), TowerToHyperService::new(guarded.clone()));
                    connections.spawn(async move {
                        if let Err(error) = answer(tls, stream, service).await {
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
        drop(listener);
        let all_done = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_GRACE, all_done).await.is_err() {
            tracing::warn!("requests at the control door were still under way at the end of the shutdown");
        }
    }
}

async fn answer(tls: TlsAcceptor, stream: TcpStream, service: TowerToHyperService<axum::Router>) -> Result<()> {
    let late = |_| Error::new(ErrorKind::Unavailable, "the handshake took too long");
    let stream = tokio::time::timeout(PATIENCE, tls.accept(stream)).await.map_err(late)?;
    let stream = TokioIo::new(stream.context(|| "TLS")?);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(stream, service)
        .await
        .map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))
}

/// Lets requests pass that show a token which allows them.
async fn admit(State(tokens): State<TokenFile>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(shown) = shown.and_then(|value| value.strip_prefix("Bearer ")) else {
        return refusal(StatusCode::UNAUTHORIZED, &Error::new(ErrorKind::Denied, "this daemon wants a token here"));
    };
    let token = match tokens.find(shown.trim()) {
        Ok(Some(token)) => token,
        Ok(None) => {
            tracing::warn!("somebody came to the control door with a token that is not known");
            let error = Error::new(ErrorKind::Denied, "the token is not one that this daemon knows");
            return refusal(StatusCode::UNAUTHORIZED, &error);
        }
        Err(error) => {
            tracing::error!(%error, "the control door cannot tell who may come in");
            let error = Error::new(ErrorKind::Unavailable, "this daemon cannot read its tokens: see its log");
            return refusal(StatusCode::SERVICE_UNAVAILABLE, &error);
        }
    };
    if token.scope == Scope::Read && request.method() != Method::GET {
        let message = format!("the token of {} may look, and change nothing", token.name);
        return refusal(StatusCode::FORBIDDEN, &Error::new(ErrorKind::Denied, message));
    }
    if request.method() != Method::GET {
        tracing::info!(token = token.name, method = %request.method(), path = request.uri().path(), "asked over TCP");
    }
    next.run(request).await
}
