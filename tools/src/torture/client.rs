//! A small NBD client on a Unix socket: several writes in flight, simple replies, nothing that torture does not need.

use std::collections::HashMap;
use std::io::{self, ErrorKind as IoKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use varve::error::{Error, ErrorKind, Result};
use varve::nbd::protocol::{
    OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, command, option, option_reply,
};

/// No answer for so long means that something hangs.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longest option reply that is read.
const OPTION_BYTES_MAX: u32 = 64 << 10;
const FUA: u16 = 1;
const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";

/// An answer to a request: its cookie, the errno (0: done), and what a read brings.
pub struct Answer {
    pub cookie: u64,
    pub errno: u32,
    pub data: Vec<u8>,
}

/// A connection to one export.
pub struct Client {
    stream: UnixStream,
    next_cookie: u64,
    reads: HashMap<u64, usize>,
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    for (to, from) in array.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    array
}

impl Client {
    /// Connects and opens the export.
    ///
    /// # Errors
    /// `Unavailable` if nobody listens, or with the server's own words if it refuses.
    pub fn connect(socket: &Path, export: &str) -> Result<Client> {
        Client::open(socket, export).map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("cannot open export {export} at {}: {error}", socket.display()))
        })
    }

    fn open(socket: &Path, export: &str) -> io::Result<Client> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != GREETING {
            return Err(io::Error::new(IoKind::InvalidData, "it is no NBD server"));
        }
        let length = u32::try_from(export.len()).map_err(|_| io::Error::from(IoKind::InvalidInput))?;
        let mut hello = Vec::new();
        hello.extend(3_u32.to_be_bytes());
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(option::GO.to_be_bytes());
        hello.extend((length + 6).to_be_bytes());
        hello.extend(length.to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0_u16.to_be_bytes());
        stream.write_all(&hello)?;
        loop {
            let mut header = [0; 20];
            stream.read_exact(&mut header)?;
            let length = u32::from_be_bytes(part(&header, 16));
            if u64::from_be_bytes(part(&header, 0)) != OPTION_REPLY_MAGIC || length > OPTION_BYTES_MAX {
                return Err(io::Error::new(IoKind::InvalidData, "its answer to GO makes no sense"));
            }
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload)?;
            match u32::from_be_bytes(part(&header, 12)) {
                option_reply::ACK => return Ok(Client { stream, next_cookie: 1, reads: HashMap::new() }),
                option_reply::INFO => {}
                _ => return Err(io::Error::new(IoKind::ConnectionRefused, String::from_utf8_lossy(&payload))),
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(flags.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        Ok(cookie)
    }

    /// Sends a write; `durable` with FUA. Returns its cookie.
    pub fn send_write(&mut self, offset: u64, data: &[u8], durable: bool) -> io::Result<u64> {
        let length = u32::try_from(data.len()).map_err(|_| io::Error::from(IoKind::InvalidInput))?;
        self.send(command::WRITE, if durable { FUA } else { 0 }, offset, length, data)
    }

    /// Sends a flush. Returns its cookie.
    pub fn send_flush(&mut self) -> io::Result<u64> {
        self.send(command::FLUSH, 0, 0, 0, &[])
    }

    /// Waits for the next answer; `None` if the connection has ended.
    pub fn answer(&mut self) -> io::Result<Option<Answer>> {
        let mut header = [0; 16];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), IoKind::UnexpectedEof | IoKind::ConnectionReset) => return Ok(None),
            Err(error) if error.kind() == IoKind::WouldBlock => {
                return Err(io::Error::new(IoKind::TimedOut, format!("no answer within {PATIENCE:?}")));
            }
            Err(error) => return Err(error),
        }
        if u32::from_be_bytes(part(&header, 0)) != SIMPLE_REPLY_MAGIC {
            return Err(io::Error::new(IoKind::InvalidData, "an answer makes no sense"));
        }
        let (errno, cookie) = (u32::from_be_bytes(part(&header, 4)), u64::from_be_bytes(part(&header, 8)));
        let mut data = vec![0; if errno == 0 { self.reads.remove(&cookie).unwrap_or(0) } else { 0 }];
        match self.stream.read_exact(&mut data) {
            Err(error) if matches!(error.kind(), IoKind::UnexpectedEof | IoKind::ConnectionReset) => Ok(None),
            read => read.map(|()| Some(Answer { cookie, errno, data })),
        }
    }

    /// Reads, with nothing else in flight.
    ///
    /// # Errors
    /// `Io`, also for an errno that the server answers.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>> {
        let failed = |what: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Io, format!("reading {length} bytes at {offset}: {what}"))
        };
        let cookie = self.send(command::READ, 0, offset, length, &[]).map_err(|error| failed(&error))?;
        self.reads.insert(cookie, length as usize);
        match self.answer().map_err(|error| failed(&error))? {
            Some(Answer { errno: 0, data, .. }) => Ok(data),
            Some(answer) => Err(failed(&format!("errno {}", answer.errno))),
            None => Err(failed(&"the daemon hung up")),
        }
    }

    /// Reads the whole disk.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_all(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut disk = Vec::new();
        let mut offset = 0;
        while offset < size {
            let length = u32::try_from((size - offset).min(1 << 20)).unwrap_or(1 << 20);
            disk.extend(self.read(offset, length)?);
            offset += u64::from(length);
        }
        Ok(disk)
    }
}
