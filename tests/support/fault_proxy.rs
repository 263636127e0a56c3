//! An HTTP proxy between a daemon and a real S3 server that does to chosen requests what networks and servers do to them: refuses,
//! delays, drops, duplicates, cuts, and shows old listings. Which request, by method, part of its name and how many of the kind came before.
//!
//! Requests are passed on with the `Host` header that the client signed, so that the server verifies the signature as it would without us.
//! Nothing is timed but [`Fault::Delay`]: what arrives late is kept until the test sends it.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::daemon::Host;

/// What happens to a request.
#[derive(Clone)]
pub enum Fault {
    /// It is answered with this status and the server never hears of it.
    Refuse(u16),
    /// It takes effect, and is answered with this status.
    ApplyAndRefuse(u16),
    /// It takes effect this much later.
    Delay(Duration),
    /// It is lost, and the connection with it.
    DropRequest,
    /// It takes effect; its answer is lost, and the connection with it.
    DropReply,
    /// It takes effect, and a copy of it waits for [`FaultProxy::send_late`].
    Duplicate,
    /// It is lost as for the client, and waits for [`FaultProxy::send_late`].
    Postpone,
    /// Only half of the answer's body arrives, then the connection ends.
    CutReply,
    /// A listing is answered as it was when it was first asked for.
    OldList,
    /// A listing lacks every second entry.
    PartialList,
    /// Something is done before it takes effect; then it is lost.
    CallBefore(Arc<dyn Fn() + Send + Sync>),
    /// Something is done once it has taken effect; its answer is lost.
    CallAfter(Arc<dyn Fn() + Send + Sync>),
}

struct Rule {
    method: &'static str,
    part: String,
    /// How many requests of the kind are left alone first, and how many are hit then.
    skip: u64,
    times: u64,
    seen: u64,
    hits: u64,
    fault: Fault,
}

/// Names a rule.
#[derive(Clone, Copy, Debug)]
pub struct RuleId(usize);

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    late: Vec<Message>,
    /// The first answer to each listing.
    lists: HashMap<String, Message>,
}

struct Shared {
    server: String,
    state: Mutex<State>,
    stopped: AtomicBool,
}

/// A running proxy; gone when dropped. Connections end with those who hold them.
pub struct FaultProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl FaultProxy {
    /// Starts one before the server at `endpoint` (`http://HOST:PORT`).
    pub fn start(endpoint: &str) -> FaultProxy {
        let server = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { server, state: Mutex::default(), stopped: AtomicBool::new(false) });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if serving.stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (shared, Ok(client)) = (serving.clone(), client) else { continue };
                // A connection that breaks is the client's affair: it tries again.
                std::thread::spawn(move || shared.serve(client));
            }
        });
        FaultProxy { shared, address }
    }

    /// A host, and a proxy between it and its store, which is an S3 server.
    pub fn before(host: Host) -> (Host, FaultProxy) {
        let endpoint = host.environment.iter().find(|(name, _)| name == "AWS_ENDPOINT_URL");
        let proxy = FaultProxy::start(&endpoint.expect("a host of an S3 store").1);
        (host.with_environment("AWS_ENDPOINT_URL", &proxy.endpoint()), proxy)
    }

    /// The URL that clients are given.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on: of the requests with this method whose name has `part` in it, `skip` are passed on, and the next `times` meet the fault.
    pub fn add(&self, method: &'static str, part: &str, skip: u64, times: u64, fault: Fault) -> RuleId {
        let mut state = self.state();
        state.rules.push(Rule { method, part: part.to_owned(), skip, times, seen: 0, hits: 0, fault });
        RuleId(state.rules.len() - 1)
    }

    /// How many requests a rule has hit.
    pub fn hits(&self, rule: RuleId) -> u64 {
        self.state().rules[rule.0].hits
    }

    /// How many requests a rule has looked at.
    pub fn seen(&self, rule: RuleId) -> u64 {
        self.state().rules[rule.0].seen
    }

    /// Ends a rule; it can still be asked for its hits.
    pub fn end(&self, rule: RuleId) {
        self.state().rules[rule.0].times = 0;
    }

    /// Sends what was kept, in order, and returns the names and the statuses of the answers.
    pub fn send_late(&self) -> Vec<(String, u16)> {
        let late = std::mem::take(&mut self.state().late);
        late.iter().map(|request| (request.target().to_owned(), self.shared.ask(request).unwrap().status())).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

/// What becomes of the connection after a request.
enum Outcome {
    Answer(Message),
    /// Half of the answer, and the end.
    Half(Message),
    End,
}

impl Shared {
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut client = BufReader::new(client);
        while let Some(request) = Message::read_request(&mut client)? {
            match self.handle(&request) {
                Ok(Outcome::Answer(answer)) => client.get_mut().write_all(&answer.bytes(answer.body.len()))?,
                Ok(Outcome::Half(answer)) => {
                    client.get_mut().write_all(&answer.bytes(answer.body.len() / 2))?;
                    break;
                }
                // The server being away looks to the client as a lost connection does.
                Ok(Outcome::End) | Err(_) => break,
            }
        }
        client.get_mut().shutdown(Shutdown::Both)
    }

    fn handle(&self, request: &Message) -> io::Result<Outcome> {
        match self.fault_for(request) {
            None => self.pass(request).map(Outcome::Answer),
            Some(Fault::Refuse(status)) => Ok(Outcome::Answer(refusal(status))),
            Some(Fault::ApplyAndRefuse(status)) => self.pass(request).map(|_| Outcome::Answer(refusal(status))),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(time);
                self.pass(request).map(Outcome::Answer)
            }
            Some(Fault::DropRequest) => Ok(Outcome::End),
            Some(Fault::DropReply) => self.pass(request).map(|_| Outcome::End),
            Some(Fault::Duplicate) => {
                let answer = self.pass(request)?;
                self.state.lock().unwrap().late.push(request.clone());
                Ok(Outcome::Answer(answer))
            }
            Some(Fault::Postpone) => {
                self.state.lock().unwrap().late.push(request.clone());
                Ok(Outcome::End)
            }
            Some(Fault::CutReply) => self.pass(request).map(Outcome::Half),
            Some(Fault::OldList) => {
                let old = self.state.lock().unwrap().lists.get(request.target()).cloned();
                old.map_or_else(|| self.pass(request), Ok).map(Outcome::Answer)
            }
            Some(Fault::PartialList) => self.pass(request).map(|answer| Outcome::Answer(answer.without_every_second())),
            Some(Fault::CallBefore(call)) => {
                call();
                Ok(Outcome::End)
            }
            Some(Fault::CallAfter(call)) => {
                self.pass(request)?;
                call();
                Ok(Outcome::End)
            }
        }
    }

    fn fault_for(&self, request: &Message) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        let mut fault = None;
        let (method, target) = (request.method(), request.target());
        for rule in state.rules.iter_mut().filter(|rule| rule.method == method && target.contains(&rule.part)) {
            rule.seen += 1;
            if fault.is_none() && rule.seen > rule.skip && rule.hits < rule.times {
                rule.hits += 1;
                fault = Some(rule.fault.clone());
            }
        }
        fault
    }

    /// Asks the server, and remembers the first answer to each listing.
    fn pass(&self, request: &Message) -> io::Result<Message> {
        let answer = self.ask(request)?;
        if request.method() == "GET" && request.target().contains("list-type=2") && answer.status() == 200 {
            let mut state = self.state.lock().unwrap();
            state.lists.entry(request.target().to_owned()).or_insert_with(|| answer.clone());
        }
        Ok(answer)
    }

    /// A connection of its own for each request: its end is the end of the answer.
    fn ask(&self, request: &Message) -> io::Result<Message> {
        let mut server = TcpStream::connect(&self.server)?;
        server.set_nodelay(true)?;
        let mut head: Vec<&String> = request.head.iter().filter(|line| !is(line, "connection")).collect();
        let close = "Connection: close".to_owned();
        head.push(&close);
        // A server that refuses a request by its head does not read the body: then writing fails, and so does reading once the answer is read.
        let sent = server.write_all(&on_the_wire(&head, &request.body));
        let mut bytes = Vec::new();
        match server.read_to_end(&mut bytes).and(sent) {
            Err(error) if bytes.is_empty() => Err(error),
            _ => Message::of_answer(&bytes, request.method() == "HEAD"),
        }
    }
}

/// A request or an answer.
#[derive(Clone, Debug)]
struct Message {
    /// The first line and the headers.
    head: Vec<String>,
    body: Vec<u8>,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn is(line: &str, header: &str) -> bool {
    line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(header))
}

fn on_the_wire(head: &[&String], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 1024);
    for line in head {
        bytes.extend(line.as_bytes());
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}

fn read_head(from: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(head);
        }
        head.push(line.to_owned());
    }
}

impl Message {
    /// The next request of a connection; `None` at its end.
    fn read_request(client: &mut BufReader<TcpStream>) -> io::Result<Option<Message>> {
        let head = read_head(client)?;
        if head.is_empty() {
            return Ok(None);
        }
        let mut request = Message { head, body: Vec::new() };
        if request.header("transfer-encoding").is_some() {
            return Err(broken("a request in chunks, which varve does not send"));
        }
        if request.header("expect").is_some() {
            client.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            request.head.retain(|line| !is(line, "expect"));
        }
        let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        request.body = vec![0; length];
        client.read_exact(&mut request.body)?;
        Ok(Some(request))
    }

    /// A whole answer, its body in one piece. A body that is shorter than its head says stays so.
    fn of_answer(bytes: &[u8], headless: bool) -> io::Result<Message> {
        let mut rest = bytes;
        let head = read_head(&mut rest)?;
        let mut answer = Message { head, body: rest.to_vec() };
        if answer.head.is_empty() {
            return Err(broken("the server gave no answer"));
        }
        if answer.header("transfer-encoding").is_some() {
            answer.body = unchunked(rest)?;
            answer.head.retain(|line| !is(line, "transfer-encoding"));
            answer.head.push(format!("Content-Length: {}", answer.body.len()));
        } else if answer.header("content-length").is_none() && !headless {
            answer.head.push(format!("Content-Length: {}", answer.body.len()));
        }
        answer.head.retain(|line| !is(line, "connection"));
        Ok(answer)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.iter().skip(1).find(|line| is(line, name))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }

    fn word(&self, place: usize) -> &str {
        self.head[0].split(' ').nth(place).unwrap_or("")
    }

    fn method(&self) -> &str {
        self.word(0)
    }

    fn target(&self) -> &str {
        self.word(1)
    }

    fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or(0)
    }

    /// As it is sent, with this much of the body.
    fn bytes(&self, body: usize) -> Vec<u8> {
        on_the_wire(&self.head.iter().collect::<Vec<_>>(), &self.body[..body])
    }

    /// A listing without every second object and folder.
    fn without_every_second(self) -> Message {
        let mut text = String::from_utf8_lossy(&self.body).into_owned();
        for tag in ["Contents", "CommonPrefixes"] {
            let open = format!("<{tag}>");
            let close = format!("</{tag}>");
            let mut kept = String::new();
            let mut rest = text.as_str();
            let mut count = 0;
            while let (Some(start), Some(end)) = (rest.find(&open), rest.find(&close)) {
                let after = end + close.len();
                kept.push_str(if count % 2 == 0 { &rest[..after] } else { &rest[..start] });
                rest = &rest[after..];
                count += 1;
            }
            kept.push_str(rest);
            text = kept;
        }
        let mut head: Vec<String> = self.head.into_iter().filter(|line| !is(line, "content-length")).collect();
        head.push(format!("Content-Length: {}", text.len()));
        Message { head, body: text.into_bytes() }
    }
}

fn unchunked(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        rest.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(|_| broken("the length of a chunk"))?;
        if length == 0 {
            return Ok(body);
        }
        body.extend(rest.get(..length).ok_or_else(|| broken("a chunk was cut"))?);
        rest = rest.get(length + 2..).ok_or_else(|| broken("a chunk without an end"))?;
    }
}

/// The answer that S3 gives with this status.
fn refusal(status: u16) -> Message {
    let code = match status {
        403 => "AccessDenied",
        409 => "ConditionalRequestConflict",
        429 => "TooManyRequests",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>the fault proxy</Message></Error>"
    );
    let head = vec![
        format!("HTTP/1.1 {status} Fault"),
        "Content-Type: application/xml".to_owned(),
        format!("Content-Length: {}", body.len()),
    ];
    Message { head, body: body.into_bytes() }
}
