//! A small HTTP/1.1 server on 127.0.0.1 that follows a script, faults included.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::listening::Listening;

/// Interval at which a waiting connection checks for the server's end.
const TICK: Duration = Duration::from_millis(10);

/// A request as received.
#[derive(Debug, Clone)]
pub struct Request {
    /// Path on the server, with its query.
    pub path: String,
    /// Headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Number of earlier requests.
    pub number: usize,
}

impl Request {
    /// Returns the start of the requested range.
    pub fn range_start(&self) -> Option<usize> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        range.split('-').next()?.parse().ok()
    }
}

/// An answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    end: End,
    chunked: bool,
    whole: bool,
}

/// End of an answer, after its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Closes the connection.
    Close,
    /// Sends nothing until the client disconnects.
    Silence,
    /// Repeats the body until the client disconnects.
    Repeat,
    /// Sends the body in pieces of this size, with such pauses between them.
    Slow(usize, Duration),
}

impl Reply {
    /// Answers with this status and body.
    pub fn new(status: u16, body: &[u8]) -> Self {
        let length = ("Content-Length".to_owned(), body.len().to_string());
        Self {
            status,
            headers: vec![length],
            body: body.to_vec(),
            end: End::Close,
            chunked: false,
            whole: true,
        }
    }

    /// Returns no answer at all.
    pub fn silence() -> Self {
        Self::new(0, b"")
    }

    /// Returns the answer of a proper file server, which honours `Range` and `If-Range`.
    pub fn file(request: &Request, bytes: &[u8], etag: Option<&str>) -> Self {
        let start = request.range_start().filter(|_| {
            let if_range = request.headers.get("if-range");
            if_range.is_none_or(|wanted| Some(wanted.as_str()) == etag)
        });
        let reply = match start {
            Some(start) if start >= bytes.len() => {
                Self::new(416, b"").header("Content-Range", &format!("bytes */{}", bytes.len()))
            }
            Some(start) => Self::new(206, &bytes[start..]).header(
                "Content-Range",
                &format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
            ),
            None => Self::new(200, bytes),
        };
        match etag {
            Some(etag) => reply.header("ETag", etag),
            None => reply,
        }
    }

    /// Sets a header, replacing one of the same name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self = self.without(name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Drops a header.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self
    }

    /// Closes the connection after this many bytes of the body.
    pub fn cut(mut self, bytes: usize) -> Self {
        self.body.truncate(bytes);
        self.whole = false;
        self
    }

    /// Sends nothing more after the body, and does not close the connection either.
    pub fn then_silence(mut self) -> Self {
        self.end = End::Silence;
        self
    }

    /// Sends the body again and again, until the client goes away.
    pub fn endless(mut self) -> Self {
        self.end = End::Repeat;
        self
    }

    /// Sends the body in pieces of so many bytes, 100 a second.
    pub fn slowly(self, piece: usize) -> Self {
        self.paced(piece, TICK)
    }

    /// Sends the body in pieces of so many bytes, with a pause after each.
    pub fn paced(mut self, piece: usize, pause: Duration) -> Self {
        self.end = End::Slow(piece, pause);
        self
    }

    /// Sends the body in chunks, without its length.
    pub fn chunked(self) -> Self {
        let mut reply = self.without("Content-Length").header("Transfer-Encoding", "chunked");
        reply.chunked = true;
        reply
    }

    /// Damages the byte at this place of the body.
    pub fn flip_bit(mut self, at: usize) -> Self {
        self.body[at] ^= 1;
        self
    }
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

/// The server. Ends, with all its threads, when dropped.
pub struct Server {
    shared: Arc<Shared>,
    listening: Listening,
}

struct Shared {
    script: Box<Script>,
    log: Mutex<Vec<(Request, u64)>>,
    over: Arc<AtomicBool>,
}

impl Server {
    /// Starts a server that answers as the script says.
    pub fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let (log, over) = (Mutex::default(), Arc::default());
        let shared = Arc::new(Shared { script: Box::new(script), log, over });
        let for_threads = shared.clone();
        let serve = move |stream| serve(stream, &for_threads);
        let listening = Listening::start(shared.over.clone(), serve);
        Self { shared, listening }
    }

    /// Returns the address of a path on this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listening.address)
    }

    /// Returns the requests so far, in their order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared
            .log
            .lock()
            .expect("not poisoned")
            .iter()
            .map(|(request, _)| request.clone())
            .collect()
    }

    /// Returns the `Range` header of each request.
    pub fn ranges(&self) -> Vec<Option<String>> {
        self.requests().iter().map(|request| request.headers.get("range").cloned()).collect()
    }

    /// Returns the number of bytes of bodies that were sent.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.log.lock().expect("not poisoned").iter().map(|(_, bytes)| bytes).sum()
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = read_request(&stream)?;
    let index = {
        let mut log = shared.log.lock().expect("not poisoned");
        request.number = log.len();
        log.push((request.clone(), 0));
        request.number
    };
    let reply = (shared.script)(&request);
    if reply.status == 0 {
        return wait_for_end(&mut stream, shared);
    }
    let mut head = format!("HTTP/1.1 {} Whatever\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let sent = |bytes: usize| shared.log.lock().expect("not poisoned")[index].1 += bytes as u64;
    let piece = match reply.end {
        End::Slow(piece, _) => piece,
        _ => 16 * 1024,
    };
    loop {
        for piece in reply.body.chunks(piece) {
            if shared.over.load(Ordering::Relaxed) {
                return Ok(());
            }
            if reply.chunked {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
            }
            stream.write_all(piece)?;
            if reply.chunked {
                stream.write_all(b"\r\n")?;
            }
            sent(piece.len());
            if let End::Slow(_, pause) = reply.end {
                thread::sleep(pause);
            }
        }
        match reply.end {
            End::Repeat => {}
            End::Silence => return wait_for_end(&mut stream, shared),
            End::Close | End::Slow(..) => break,
        }
    }
    if reply.chunked && reply.whole {
        stream.write_all(b"0\r\n\r\n")?;
    }
    stream.flush()
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().ok_or(ErrorKind::UnexpectedEof)??;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
    }
    Ok(Request { path, headers, number: 0 })
}

fn wait_for_end(stream: &mut TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    while !shared.over.load(Ordering::Relaxed) {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return Ok(()),
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}
