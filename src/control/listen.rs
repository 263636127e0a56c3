//! The socket file: made so that nobody else can connect, replaced only if it is stale, removed only if it is ours. Should somebody loosen
//! its permissions, a client of another user is turned away all the same.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tokio::net::{UnixListener, UnixSocket, UnixStream as Peer};

use crate::error::{Context, Error, ErrorKind, Result};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 64;
/// Longest path of a Unix socket on Linux, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A bound control socket that does not answer yet. Dropping it removes the file.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

impl ControlSocket {
    /// Binds the socket at `path` with mode 0600, in a directory that exists. The file of a dead daemon is replaced.
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// `Busy` if a daemon answers there; `Invalid` for a path that is too long or where another kind of file lies; `Io`.
    pub fn bind(path: &Path) -> Result<Self> {
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(Error::invalid(format!(
                "control socket {}: the path of a Unix socket has at most {SOCKET_PATH_BYTES_MAX} bytes: choose a shorter one with --control",
                path.display()
            )));
        }
        remove_if_stale(path)?;
        let named = || format!("control socket {}", path.display());
        let socket = UnixSocket::new_stream().context(named)?;
        // On Linux the file takes its mode from the socket, so there is no moment at which others could connect.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(io::Error::from).context(named)?;
        socket.bind(path).context(named)?;
        let file = SocketFile::of(path).context(named)?;
        let listener = socket.listen(BACKLOG).context(named)?;
        Ok(ControlSocket { listener, file })
    }

    /// Where it is bound.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Accepts clients of our own user, and root, who may do everything anyway.
pub(super) struct OwnUsers(pub(super) UnixListener);

impl axum::serve::Listener for OwnUsers {
    type Io = Peer;
    type Addr = ();

    async fn accept(&mut self) -> (Peer, ()) {
        loop {
            // What can be done about failures of `accept` is done there.
            let (peer, _) = axum::serve::Listener::accept(&mut self.0).await;
            match peer.peer_cred() {
                Ok(user) if user.uid() == 0 || user.uid() == rustix::process::geteuid().as_raw() => return (peer, ()),
                Ok(user) => tracing::warn!(uid = user.uid(), "another user is turned away from the control socket"),
                Err(error) => {
                    tracing::warn!(%error, "a client of the control socket cannot be told, and is turned away")
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket file of ours; removed on drop, unless it has become somebody else's.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| metadata.dev() == self.device && metadata.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            // The next daemon will find that nobody answers there.
            tracing::warn!(path = %self.path.display(), %error, "the control socket's file could not be removed");
        }
    }
}

fn remove_if_stale(path: &Path) -> Result<()> {
    let named = || format!("control socket {}", path.display());
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(named),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Error::invalid(format!(
                "{}: a file that is no socket lies there: remove it, or choose another path with --control",
                named()
            )));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        // Nobody listens: what is left of a daemon that was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the control socket of a daemon that is gone");
            std::fs::remove_file(path).context(named)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // WouldBlock means that somebody listens whose backlog is full.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error).context(named),
        _ => Err(Error::new(
            ErrorKind::Busy,
            format!("{}: another daemon answers there: stop it, or choose another path with --control", named()),
        )),
    }
}
