//! The sockets that clients connect to: TCP addresses, Unix paths, and what systemd hands over.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use crate::error::{Context, Error, ErrorKind, Result};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket that clients connect to. Dropping it removes the file of a Unix socket that was made here.
#[derive(Debug)]
pub enum Listener {
    /// On an address.
    Tcp(TcpListener),
    /// On a path.
    Unix {
        /// The socket.
        listener: UnixListener,
        /// The file to remove at the end; none if somebody else made it.
        made: Option<PathBuf>,
    },
}

impl Listener {
    /// Listens on a TCP address.
    ///
    /// # Errors
    /// `Io`: the address is in use, or not one of this host.
    pub fn tcp(address: SocketAddr) -> Result<Listener> {
        let listener = TcpListener::bind(address).context(|| format!("cannot listen for NBD on {address}"))?;
        Listener::ready(Listener::Tcp(listener))
    }

    /// Listens on a Unix socket that only its owner may connect to. A file left by a server that has
    /// died is replaced.
    ///
    /// # Errors
    /// `Busy` if somebody listens there; `Conflict` if the path is something else; `Io`.
    pub fn unix(path: &Path) -> Result<Listener> {
        let what = || format!("cannot listen for NBD on {}", path.display());
        remove_stale(path)?;
        let made = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // Before it is bound, so that the file never has any other mode.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &SocketAddrUnix::new(path)?)?;
            listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        let listener = UnixListener::from(made().context(what)?);
        Listener::ready(Listener::Unix { listener, made: Some(path.to_owned()) })
    }

    /// The sockets that systemd has handed over; none if there are none.
    ///
    /// # Errors
    /// `Invalid` if one of them is not a listening stream socket.
    pub fn inherited() -> Result<Vec<Listener>> {
        let mut handed = ListenFd::from_env();
        let mut listeners = Vec::new();
        for index in 0..handed.len() {
            let listener = match handed.take_tcp_listener(index) {
                Ok(Some(listener)) => Listener::Tcp(listener),
                Ok(None) => continue,
                Err(_) => match handed.take_unix_listener(index) {
                    Ok(Some(listener)) => Listener::Unix { listener, made: None },
                    Ok(None) => continue,
                    Err(error) => {
                        let message = format!("inherited socket {index} is no listening TCP or Unix socket: {error}");
                        return Err(Error::invalid(message));
                    }
                },
            };
            listeners.push(Listener::ready(listener)?);
        }
        Ok(listeners)
    }

    fn ready(listener: Listener) -> Result<Listener> {
        let result = match &listener {
            Listener::Tcp(listener) => listener.set_nonblocking(true),
            Listener::Unix { listener, .. } => listener.set_nonblocking(true),
        };
        result.context(|| "cannot prepare a socket for NBD")?;
        Ok(listener)
    }

    /// Takes the next waiting connection, as a blocking socket.
    ///
    /// # Errors
    /// `WouldBlock` if none waits; what the operating system says.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                // So that a client whose host has died is noticed in the end.
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok(stream.into())
            }
            Listener::Unix { listener, .. } => Ok(listener.accept()?.0.into()),
        }
    }

    /// Its URI without an export. With `tls` the scheme says so.
    pub fn uri(&self, tls: bool) -> String {
        let scheme = if tls { "nbds" } else { "nbd" };
        match self {
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("{scheme}://{address}"),
                Err(_) => format!("{scheme}://"),
            },
            Listener::Unix { listener, .. } => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                format!("{scheme}+unix:///?socket={}", Escaped(path.unwrap_or(Path::new(""))))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix { listener, .. } => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix { made: Some(path), .. } = self {
            // A file that cannot be removed is found to be stale at the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A path as a part of a URI's query.
struct Escaped<'a>(&'a Path);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0.as_os_str().as_encoded_bytes() {
            if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// Removes the socket file of a server that has died.
fn remove_stale(path: &Path) -> Result<()> {
    let what = || format!("cannot listen for NBD on {}", path.display());
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(what),
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!("{}: there is a file that is no socket; choose another path", what());
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).context(what),
        Err(error) => Err(error).context(what),
        Ok(_) => {
            let message = format!("{}: another server listens there; stop it or choose another path", what());
            Err(Error::new(ErrorKind::Busy, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_unix_socket_is_private_and_replaces_only_what_is_stale() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a b.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = Listener::unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Listener::unix(&path).unwrap_err().kind(), ErrorKind::Busy);
        assert!(first.uri(false).starts_with("nbd+unix:///?socket=/"));
        assert!(first.uri(true).ends_with("/a%20b.sock"));
        drop(first);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::unix(&path).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
