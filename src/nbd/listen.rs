//! The sockets that clients connect to: TCP addresses, Unix paths, and what systemd hands over.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use crate::error::{Context, Error, ErrorKind, Result};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Where a client comes from, as far as its share of the connections goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A Unix socket: somebody whom file permissions let in.
    Here,
    /// An IPv4 address, or a network of 64 bits of IPv6, of which one host has all addresses.
    Address(IpAddr),
}

impl Origin {
    fn of(address: IpAddr) -> Self {
        Origin::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::from([a, b, c, d, 0, 0, 0, 0])
            }
            address => address,
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Here => write!(f, "a Unix socket"),
            Origin::Address(address) => address.fmt(f),
        }
    }
}

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
    pub fn accept(&self) -> io::Result<(OwnedFd, Origin)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, from) = listener.accept()?;
                stream.set_nodelay(true)?;
                // So that a client whose host has died is noticed in the end.
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok((stream.into(), Origin::of(from.ip())))
            }
            Listener::Unix { listener, .. } => Ok((listener.accept()?.0.into(), Origin::Here)),
        }
    }

    /// The address that other machines can reach it at, if they can.
    pub fn exposed(&self) -> Option<SocketAddr> {
        let Listener::Tcp(listener) = self else { return None };
        let address = listener.local_addr().ok()?;
        (!address.ip().to_canonical().is_loopback()).then_some(address)
    }

    /// Its URI without an export. With `tls` that of a TCP socket says so.
    pub fn uri(&self, tls: bool) -> String {
        match self {
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) if tls => format!("nbds://{address}"),
                Ok(address) => format!("nbd://{address}"),
                Err(_) => "nbd://".to_owned(),
            },
            Listener::Unix { listener, .. } => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                format!("nbd+unix:///?socket={}", Escaped(path.unwrap_or(Path::new(""))))
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
    fn origins_are_hosts_and_not_their_addresses() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.2"), of("10.0.0.1"));
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2::9"));
        assert_ne!(of("2001:db8:1:3::4"), of("2001:db8:1:2::4"));
    }

    #[test]
    fn what_other_machines_can_reach_is_told_from_the_loopback() {
        for (address, exposed) in
            [("127.0.0.1:0", false), ("127.9.9.9:0", false), ("[::1]:0", false), ("0.0.0.0:0", true)]
        {
            let listener = Listener::tcp(address.parse().unwrap()).unwrap();
            assert_eq!(listener.exposed().is_some(), exposed, "{address}");
        }
    }

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
