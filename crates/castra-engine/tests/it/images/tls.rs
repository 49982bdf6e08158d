//! Encrypted downloads, against `openssl s_server` with a certificate of the test's own.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use castra_engine::managed::ManagedImageSpec;
use castra_test_support::http::{Reply, Server};

use crate::images::fixture::{Fixture, disk_image, payload, raw_of};
use crate::images::processes::Run;

const SIZE: usize = 16 * 1024;

/// A server of verbatim answers, ended when dropped.
pub(crate) struct TlsServer {
    child: Child,
    port: String,
    pub(crate) certificate: PathBuf,
}

impl TlsServer {
    /// Serves these files: name, and whole answer with its header.
    pub(crate) fn start(fixture: &Fixture, answers: &[(&str, &[u8])]) -> Self {
        let directory = fixture.path("tls");
        std::fs::create_dir(&directory).expect("a directory");
        for (name, answer) in answers {
            std::fs::write(directory.join(name), answer).expect("writes");
        }
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/CN=castra test", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args([
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
                "key.pem",
                "-out",
                "cert.pem",
            ])
            .current_dir(&directory)
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut child = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-key",
                "key.pem",
                "-cert",
                "cert.pem",
                "-HTTP",
            ])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs");
        let lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
        let accepting = lines.map_while(Result::ok).find_map(|line| {
            line.strip_prefix("ACCEPT ")
                .and_then(|address| Some(address.rsplit_once(':')?.1.to_owned()))
        });
        Self {
            child,
            port: accepting.expect("it says where"),
            certificate: directory.join("cert.pem"),
        }
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("https://127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prepares the image in a separate process, since the trust store depends on the environment.
/// Returns its error, if any.
fn ensure(
    fixture: &Fixture,
    image: &ManagedImageSpec,
    trusted: Option<&TlsServer>,
) -> Result<(), String> {
    let run = Run::of(image);
    match trusted {
        Some(server) => run.with("SSL_CERT_FILE", &server.certificate).end(fixture),
        None => run.end(fixture),
    }
}

#[test]
fn a_trusted_server_is_used_and_may_not_redirect_to_plain_http() {
    let fixture = Fixture::new();
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let plain = Server::start(move |request| Reply::file(request, &content, None));
    let head = format!("HTTP/1.0 200 Fine\r\nContent-Length: {SIZE}\r\n\r\n");
    let redirect = format!(
        "HTTP/1.0 302 Found\r\nContent-Length: 0\r\nLocation: {}\r\n\r\n",
        plain.url("/disk")
    );
    let whole = [head.as_bytes(), &bytes].concat();
    let server = TlsServer::start(&fixture, &[("disk", &whole), ("moved", redirect.as_bytes())]);

    let error = ensure(&fixture, &disk_image(&bytes, &[server.url("moved")]), Some(&server))
        .expect_err("is refused");
    assert!(error.contains("redirects from https to an unencrypted address"), "{error}");
    assert!(plain.requests().is_empty());

    ensure(&fixture, &disk_image(&bytes, &[server.url("disk")]), Some(&server))
        .expect("is prepared");
    let disk = fixture.project("project").images().image("disk", "v1").join("rootfs.qcow2");
    assert_eq!(raw_of(&disk), bytes);
}

#[test]
fn an_untrusted_server_is_refused_without_trying_again() {
    let fixture = Fixture::new();
    let server = TlsServer::start(&fixture, &[]);
    let error = ensure(&fixture, &disk_image(&payload(SIZE), &[server.url("disk")]), None)
        .expect_err("is refused");
    assert!(error.contains("no secure connection") && error.contains("SSL_CERT_FILE"), "{error}");
}
