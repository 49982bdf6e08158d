//! Servers of publishers, as `castra` sees them: an HTTPS proxy that answers in their place, with
//! the addresses and layouts that they have.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::listening::Listening;
use crate::tool;

/// Time after which a silent client is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// The servers. They end, with all their threads, when dropped.
pub struct Publishers {
    shared: Arc<Shared>,
    directory: tempfile::TempDir,
    listening: Listening,
}

struct Shared {
    tls: Arc<ServerConfig>,
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    log: Mutex<Vec<String>>,
}

impl Publishers {
    /// Starts servers of these names, without any file.
    pub fn start(hosts: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let tls = Arc::new(tls(&directory, hosts));
        let shared = Arc::new(Shared { tls, files: Mutex::default(), log: Mutex::default() });
        let for_threads = shared.clone();
        let listening = Listening::start(Arc::default(), move |stream| serve(stream, &for_threads));
        Self { shared, directory, listening }
    }

    /// Puts a file at this address.
    pub fn put(&self, url: &str, bytes: impl Into<Vec<u8>>) {
        self.shared.files.lock().expect("not poisoned").insert(url.to_owned(), bytes.into());
    }

    /// Removes the file at this address.
    pub fn remove(&self, url: &str) {
        self.shared.files.lock().expect("not poisoned").remove(url);
    }

    /// Returns the addresses that were asked for since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.log.lock().expect("not poisoned"))
    }

    /// Returns the environment in which `castra` asks these servers.
    pub fn environment(&self) -> [(&'static str, OsString); 4] {
        [
            ("https_proxy", format!("http://{}", self.listening.address).into()),
            ("no_proxy", "none.invalid".into()),
            ("NO_PROXY", "none.invalid".into()),
            ("SSL_CERT_FILE", self.directory.path().join("cert.pem").into_os_string()),
        ]
    }
}

/// Makes a certificate of these hosts.
fn tls(directory: &tempfile::TempDir, hosts: &[&str]) -> ServerConfig {
    let (key, certificate) = (directory.path().join("key.pem"), directory.path().join("cert.pem"));
    let names: Vec<String> = hosts.iter().map(|host| format!("DNS:{host}")).collect();
    let names = format!("subjectAltName={}", names.join(","));
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (key_text, certificate_text) = (text(&key), text(&certificate));
    let curve = "ec_paramgen_curve:P-256";
    let (new, files) = (
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", curve, "-nodes", "-days", "2"],
        ["-keyout", &key_text, "-out", &certificate_text],
    );
    let subject = ["-subj", "/CN=castra test", "-addext", &names];
    let usage = ["-addext", "basicConstraints=critical,CA:FALSE"];
    tool("openssl", &[&new[..], &files, &subject, &usage].concat());
    let chain = CertificateDer::pem_file_iter(&certificate).expect("is there");
    let chain = chain.collect::<Result<_, _>>().expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    builder.with_no_client_auth().with_single_cert(chain, key).expect("they fit")
}

/// Answers the request to connect, and then the one in the encrypted connection.
fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = read_head(&mut stream)?;
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let Some(host) = target.and_then(|target| target.strip_suffix(":443")) else {
        return stream.write_all(b"HTTP/1.1 400 What\r\nContent-Length: 0\r\n\r\n");
    };
    let host = host.to_owned();
    stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let connection = ServerConnection::new(shared.tls.clone()).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let head = read_head(&mut stream)?;
    let url = format!("https://{host}{}", head.split(' ').nth(1).unwrap_or_default());
    shared.log.lock().expect("not poisoned").push(url.clone());
    let file = shared.files.lock().expect("not poisoned").get(&url).cloned();
    let is_probe = head.to_lowercase().contains("\r\nrange: bytes=0-0\r\n");
    let (status, range, body) = match &file {
        None => (404, String::new(), &b"not here"[..]),
        Some(bytes) if is_probe && !bytes.is_empty() => {
            (206, format!("Content-Range: bytes 0-0/{}\r\n", bytes.len()), &bytes[..1])
        }
        Some(bytes) => (200, String::new(), &bytes[..]),
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {length}\r\n{range}");
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
    stream.write_all(body)?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// Reads up to the end of a head, and no further: what follows may be encrypted.
fn read_head(stream: &mut impl Read) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut bytes = BufReader::with_capacity(1, stream);
    while !head.ends_with(b"\r\n\r\n") {
        if bytes.read_until(b'\n', &mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
