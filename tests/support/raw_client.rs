//! An NBD client that says exactly what it is told to, right or wrong, and gives up after a minute of silence.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use varve::nbd::protocol::{self, Put, Reader, RequestHead, Style, encode_request, option, option_reply};

/// One reply of the transmission phase, whatever its style.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// What it answers.
    pub cookie: u64,
    /// 0 for success.
    pub errno: u32,
    /// Content of a read, or the chunk's payload.
    pub data: Vec<u8>,
    /// The message of an error.
    pub message: String,
    /// The type of the chunk; 0 for a simple reply.
    pub kind: u16,
}

/// See the file's description.
pub struct RawClient {
    /// The connection.
    pub stream: TcpStream,
    /// The headers agreed on.
    pub style: Style,
}

impl RawClient {
    /// Connects, and takes the server's greeting.
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address.trim_start_matches("nbd://").trim_start_matches("nbds://")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = RawClient { stream, style: Style::Simple };
        let greeting = client.take(18);
        let mut reader = Reader(&greeting);
        assert_eq!(reader.u64(), Some(protocol::MAGIC));
        assert_eq!(reader.u64(), Some(protocol::OPTION_MAGIC));
        assert_eq!(reader.u16(), Some(3));
        client
    }

    /// Connects and agrees on fixed newstyle without zeroes.
    pub fn greet(address: &str) -> Self {
        let mut client = RawClient::connect(address);
        client.send(&[0, 0, 0, 3]);
        client
    }

    /// Goes all the way to the transmission phase of an export.
    pub fn enter(address: &str, export: &str, style: Style) -> Self {
        let mut client = RawClient::greet(address);
        client.agree(style);
        let replies = client.ask(option::GO, &info_data(export.as_bytes(), &[]));
        assert_eq!(replies.last().map(|reply| reply.0), Some(option_reply::ACK), "{replies:?}");
        client
    }

    /// Agrees on headers.
    pub fn agree(&mut self, style: Style) {
        let option = match style {
            Style::Simple => return,
            Style::Structured => option::STRUCTURED_REPLY,
            Style::Extended => option::EXTENDED_HEADERS,
        };
        assert_eq!(self.ask(option, &[]), [(option_reply::ACK, vec![])]);
        self.style = style;
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Takes exactly `count` bytes.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Waits for the server to close, and returns what it said before.
    pub fn expect_closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server did not close: {error}"),
        }
        rest
    }

    /// Says that nothing more will be sent.
    pub fn end_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Sends an option.
    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        self.send(&option_bytes(option, data));
    }

    /// Takes one reply to `option`: its kind and payload.
    pub fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let head = self.take(20);
        let mut reader = Reader(&head);
        assert_eq!(reader.u64(), Some(protocol::OPTION_REPLY_MAGIC));
        assert_eq!(reader.u32(), Some(option));
        let (kind, length) = (reader.u32().unwrap(), reader.u32().unwrap());
        (kind, self.take(length as usize))
    }

    /// Sends an option and takes all replies to it.
    pub fn ask(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option);
            let last = reply.0 == option_reply::ACK || reply.0 >= 1 << 31;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// The bytes of a request.
    pub fn encode(&self, head: RequestHead, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_request(self.style, &head, &mut bytes);
        bytes.put(payload);
        bytes
    }

    /// Sends a request.
    pub fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u64, payload: &[u8]) {
        let bytes = self.encode(RequestHead { flags, command, cookie, offset, length }, payload);
        self.send(&bytes);
    }

    /// Takes one reply; `content` is the length of a read's content, which a simple reply does not tell.
    pub fn reply(&mut self, content: usize) -> Reply {
        let magic = Reader(&self.take(4)).u32().unwrap();
        if magic == protocol::SIMPLE_REPLY_MAGIC {
            assert_ne!(self.style, Style::Extended, "a simple reply under extended headers");
            let head = self.take(12);
            let mut reader = Reader(&head);
            let (errno, cookie) = (reader.u32().unwrap(), reader.u64().unwrap());
            let data = if errno == 0 { self.take(content) } else { Vec::new() };
            return Reply { cookie, errno, data, message: String::new(), kind: 0 };
        }
        let extended = self.style == Style::Extended;
        let expected = if extended { protocol::EXTENDED_REPLY_MAGIC } else { protocol::STRUCTURED_REPLY_MAGIC };
        assert_eq!(magic, expected);
        let head = self.take(if extended { 28 } else { 16 });
        let mut reader = Reader(&head);
        let (_flags, kind, cookie) = (reader.u16().unwrap(), reader.u16().unwrap(), reader.u64().unwrap());
        let length = if extended {
            let _offset = reader.u64().unwrap();
            reader.u64().unwrap() as usize
        } else {
            reader.u32().unwrap() as usize
        };
        let payload = self.take(length);
        let mut reader = Reader(&payload);
        let (mut errno, mut message, mut data) = (0, String::new(), Vec::new());
        if kind == protocol::chunk::ERROR {
            errno = reader.u32().unwrap();
            let length = reader.u16().unwrap();
            message = String::from_utf8(reader.bytes(length.into()).unwrap().to_vec()).unwrap();
        } else {
            if kind == protocol::chunk::OFFSET_DATA {
                reader.u64().unwrap();
            }
            data = reader.0.to_vec();
        }
        Reply { cookie, errno, data, message, kind }
    }
}

/// The bytes of an option.
pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u64(protocol::OPTION_MAGIC);
    bytes.put_u32(option);
    bytes.put_u32(data.len() as u32);
    bytes.put(data);
    bytes
}

/// The data of INFO and GO.
pub fn info_data(name: &[u8], wants: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    data.put_u32(name.len() as u32);
    data.put(name);
    data.put_u16(wants.len() as u16);
    wants.iter().for_each(|&want| data.put_u16(want));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn meta_data(name: &[u8], queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    data.put_u32(name.len() as u32);
    data.put(name);
    data.put_u32(queries.len() as u32);
    for query in queries {
        data.put_u32(query.len() as u32);
        data.put(query.as_bytes());
    }
    data
}
