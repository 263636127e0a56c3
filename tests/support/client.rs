//! A small NBD client that keeps many requests in flight, so that a test knows exactly what was acknowledged. Simple replies only;
//! the features of the protocol are tested with other people's clients.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::process::PATIENCE;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read = 0,
    Write = 1,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// The answer to one request.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    /// 0, or the errno.
    pub error: u32,
    /// What a successful read brings.
    pub data: Vec<u8>,
}

/// What [`Client::answer_at_hand`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum AtHand {
    Answer(Answer),
    /// Nothing whole has arrived yet.
    Nothing,
    /// The server has closed the connection.
    Closed,
}

/// A connection to an export.
pub struct Client {
    stream: UnixStream,
    /// Size of the export in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    next_cookie: u64,
    reads: HashMap<u64, usize>,
    received: Vec<u8>,
}

impl Client {
    /// Connects and opens the export; an error has the server's own words.
    pub fn connect(socket: &Path, export: &str) -> io::Result<Client> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(io::Error::new(ErrorKind::InvalidData, "no NBD server"));
        }
        let mut hello = Vec::new();
        hello.extend(3_u32.to_be_bytes());
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(OPTION_GO.to_be_bytes());
        hello.extend((4 + export.len() as u32 + 2).to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0_u16.to_be_bytes());
        stream.write_all(&hello)?;
        let mut client =
            Client { stream, size: 0, flags: 0, next_cookie: 1, reads: HashMap::new(), received: Vec::new() };
        client.finish_go()?;
        Ok(client)
    }

    fn finish_go(&mut self) -> io::Result<()> {
        loop {
            let mut header = [0; 20];
            self.stream.read_exact(&mut header)?;
            assert_eq!(
                u64::from_be_bytes(header[..8].try_into().unwrap()),
                OPTION_REPLY_MAGIC,
                "magic of an option reply"
            );
            let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
            let mut payload = vec![0; u32::from_be_bytes(header[16..].try_into().unwrap()) as usize];
            self.stream.read_exact(&mut payload)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO if payload.starts_with(&[0, 0]) && payload.len() == 12 => {
                    self.size = u64::from_be_bytes(payload[2..10].try_into().unwrap());
                    self.flags = u16::from_be_bytes(payload[10..].try_into().unwrap());
                }
                REPLY_INFO => {}
                _ => {
                    let words = String::from_utf8_lossy(&payload).into_owned();
                    return Err(io::Error::new(
                        ErrorKind::ConnectionRefused,
                        format!("option error {:#x}: {words}", kind),
                    ));
                }
            }
        }
    }

    /// Sends a request and returns its cookie without waiting for the answer.
    pub fn send(&mut self, command: Command, flags: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(flags.to_be_bytes());
        request.extend((command as u16).to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(data);
        if command == Command::Read {
            self.reads.insert(cookie, length as usize);
        }
        self.stream.write_all(&request)?;
        Ok(cookie)
    }

    /// Waits for the next answer; `Ok(None)` if the server has closed the connection, `WouldBlock` after `limit`.
    pub fn answer_within(&mut self, limit: Duration) -> io::Result<Option<Answer>> {
        self.stream.set_read_timeout(Some(limit))?;
        loop {
            if let Some(answer) = self.parse() {
                return Ok(Some(answer));
            }
            let mut buffer = vec![0; 256 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => self.received.extend(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the next answer; `None` if the server has closed the connection.
    #[track_caller]
    pub fn answer(&mut self) -> Option<Answer> {
        self.answer_within(PATIENCE).unwrap_or_else(|error| panic!("no answer within {PATIENCE:?}: {error}"))
    }

    /// What has arrived already, without waiting.
    pub fn answer_at_hand(&mut self) -> AtHand {
        self.stream.set_nonblocking(true).unwrap();
        let found = match self.answer_within(PATIENCE) {
            Ok(Some(answer)) => AtHand::Answer(answer),
            Ok(None) => AtHand::Closed,
            Err(error) if error.kind() == ErrorKind::WouldBlock => AtHand::Nothing,
            Err(error) => panic!("{error}"),
        };
        self.stream.set_nonblocking(false).unwrap();
        found
    }

    fn parse(&mut self) -> Option<Answer> {
        let header = self.received.get(..16)?;
        assert_eq!(u32::from_be_bytes(header[..4].try_into().unwrap()), REPLY_MAGIC, "magic of a reply");
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
        let length = match error {
            0 => self.reads.get(&cookie).copied().unwrap_or(0),
            _ => 0,
        };
        let data = self.received.get(16..16 + length)?.to_vec();
        self.received.drain(..16 + length);
        self.reads.remove(&cookie);
        Some(Answer { cookie, error, data })
    }

    /// Sends one request and waits for its answer; an error is the errno.
    #[track_caller]
    pub fn ask(&mut self, command: Command, flags: u16, offset: u64, length: u32, data: &[u8]) -> Result<Vec<u8>, u32> {
        let cookie = self.send(command, flags, offset, length, data).unwrap();
        let answer = self.answer().unwrap_or_else(|| panic!("the server hung up on {command:?} at {offset}"));
        assert_eq!(answer.cookie, cookie, "no other request is in flight");
        match answer.error {
            0 => Ok(answer.data),
            error => Err(error),
        }
    }

    /// Writes and waits.
    #[track_caller]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.ask(Command::Write, 0, offset, data.len() as u32, data).map(drop)
    }

    /// Flushes and waits.
    #[track_caller]
    pub fn flush(&mut self) -> Result<(), u32> {
        self.ask(Command::Flush, 0, 0, 0, &[]).map(drop)
    }

    /// Reads the whole disk.
    #[track_caller]
    pub fn read_all(&mut self) -> Vec<u8> {
        let mut disk = Vec::with_capacity(self.size as usize);
        while (disk.len() as u64) < self.size {
            let length = (self.size - disk.len() as u64).min(1 << 20) as u32;
            let offset = disk.len() as u64;
            let data = self.ask(Command::Read, 0, offset, length, &[]);
            disk.extend(data.unwrap_or_else(|error| panic!("reading {length} bytes at {offset}: errno {error}")));
        }
        disk
    }
}
