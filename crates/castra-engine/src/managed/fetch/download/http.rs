//! One request, on a thread of its own, so that Ctrl-C never waits for a name server, a handshake
//! or a silent peer.

use std::io::Read as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::Response;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector as _, DefaultConnector};
use ureq::{Agent, Body, Proxy, ProxyProtocol};

use super::address::{Guard, GuardedConnector, GuardedResolver, Refused};
use super::error::{DownloadError, NetworkFailure};
use super::headers::Head;
use crate::cancel::{Cancel, Interrupted};
use crate::context::{Environment, RuntimeContext};
use crate::managed::timeouts::Timeouts;

/// Most redirects that are followed: mirrors need one or two.
const MAX_REDIRECTS: u32 = 5;
/// Bytes of a body that are passed on at a time …
const CHUNK_BYTES: usize = 64 * 1024;
/// … and the number of such chunks that may wait to be written.
const CHUNKS_AHEAD: usize = 16;
/// Interval at which a waiting request checks for cancellation.
const TICK: Duration = Duration::from_millis(20);

/// Client for requests to one address.
pub(super) struct Client {
    agent: Agent,
    proxy: Option<String>,
}

/// A request.
pub(super) struct Request<'a> {
    pub(super) url: &'a str,
    /// Value of `Range`.
    pub(super) range: Option<String>,
    /// Strong ETag for `If-Range`: if the file has changed, the server then sends the whole file
    /// instead of the range.
    pub(super) if_range: Option<String>,
}

/// An answer whose body is still arriving.
pub(super) struct Answer {
    pub(super) head: Head,
    parts: Receiver<Part>,
}

/// Outcome of reading a body.
pub(super) enum Next {
    Bytes(Vec<u8>),
    End,
    /// The time was up.
    Nothing,
}

enum Part {
    Head(Head),
    Bytes(Vec<u8>),
    End,
    Failed(NetworkFailure),
}

/// Reason why nothing arrived.
pub(super) enum Silence {
    Failed(NetworkFailure),
    Interrupted(Interrupted),
}

impl Client {
    /// Creates a client for this address and those it redirects to, with the environment's proxy.
    pub(super) fn new(
        context: &RuntimeContext,
        timeouts: &Timeouts,
        url: &str,
    ) -> Result<Self, DownloadError> {
        let proxy = proxy_for(&context.environment, url)?;
        let at = |proxy: &Proxy| (proxy.host().to_ascii_lowercase(), proxy.port());
        let guard = Guard::new(context, proxy.as_ref().map(at));
        let shown = proxy.as_ref().map(|proxy| format!("{}:{}", proxy.host(), proxy.port()));
        // The operating system's store judges certificates, since companies add theirs there.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Also holds for every redirect: an encrypted download stays encrypted.
            .https_only(url.starts_with("https://"))
            .max_redirects(MAX_REDIRECTS)
            .max_redirects_will_error(true)
            .user_agent(concat!("castra/", env!("CARGO_PKG_VERSION")))
            .proxy(proxy)
            .tls_config(tls)
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(timeouts.connect))
            .timeout_send_request(Some(timeouts.stall))
            .timeout_recv_response(Some(timeouts.stall))
            .timeout_per_read(Some(timeouts.stall))
            .timeout_per_write(Some(timeouts.stall))
            .build();
        // The connector alone is not enough: names are resolved before it is called, and the
        // connection goes to the resolved addresses.
        let connector = GuardedConnector(guard.clone()).chain(DefaultConnector::new());
        let agent = Agent::with_parts(config, connector, GuardedResolver(guard));
        Ok(Self { agent, proxy: shown })
    }

    /// Returns the error for a failure of this client.
    pub(super) fn failed(&self, url: &str, failure: NetworkFailure) -> DownloadError {
        DownloadError::Network {
            url: url.to_owned(),
            proxy: self.proxy.clone(),
            failure,
            kept_bytes: 0,
        }
    }

    /// Makes a request and waits for the answer's header, until `end` at most.
    pub(super) fn get(
        &self,
        request: &Request,
        cancel: &Cancel,
        end: Option<Instant>,
    ) -> Result<Answer, Silence> {
        // A compressed answer would fit neither the pinned length nor the ranges of a resumed
        // download.
        let mut builder = self.agent.get(request.url).header("Accept-Encoding", "identity");
        if let Some(range) = &request.range {
            builder = builder.header("Range", range);
        }
        if let Some(etag) = &request.if_range {
            builder = builder.header("If-Range", etag);
        }
        let (sender, parts) = sync_channel(CHUNKS_AHEAD);
        // If the receiver is gone, the thread ends with the next part it sends, or with its time
        // limit.
        thread::spawn(move || match builder.call() {
            Ok(response) => hand_over(response, &sender),
            Err(error) => drop(sender.send(Part::Failed(explained(error)))),
        });
        let part = next_part(&parts, cancel, end)?;
        match part.ok_or(Silence::Failed(NetworkFailure::Timeout("waiting for a response")))? {
            Part::Head(head) => Ok(Answer { head, parts }),
            Part::Failed(failure) => Err(Silence::Failed(failure)),
            Part::Bytes(_) | Part::End => Err(Silence::Failed(lost())),
        }
    }
}

impl Answer {
    /// Returns the next bytes of the body, or [`Next::Nothing`] if nothing arrived until `end`.
    pub(super) fn next(&self, cancel: &Cancel, end: Option<Instant>) -> Result<Next, Silence> {
        let Some(part) = next_part(&self.parts, cancel, end)? else { return Ok(Next::Nothing) };
        match part {
            Part::Bytes(bytes) => Ok(Next::Bytes(bytes)),
            Part::End => Ok(Next::End),
            Part::Failed(failure) => Err(Silence::Failed(failure)),
            Part::Head(_) => Err(Silence::Failed(lost())),
        }
    }
}

fn next_part(
    parts: &Receiver<Part>,
    cancel: &Cancel,
    end: Option<Instant>,
) -> Result<Option<Part>, Silence> {
    loop {
        cancel.check().map_err(Silence::Interrupted)?;
        match parts.recv_timeout(TICK) {
            Ok(part) => return Ok(Some(part)),
            Err(RecvTimeoutError::Timeout) if end.is_some_and(|end| Instant::now() >= end) => {
                return Ok(None);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Silence::Failed(lost())),
        }
    }
}

/// Returns the failure for a request thread that is gone without an answer.
fn lost() -> NetworkFailure {
    NetworkFailure::Connection(std::io::ErrorKind::ConnectionAborted.into())
}

fn hand_over(response: Response<Body>, sender: &SyncSender<Part>) {
    let head = Head::new(response.status().as_u16(), response.headers());
    if sender.send(Part::Head(head)).is_err() {
        return;
    }
    let mut body = response.into_body().into_reader();
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let part = match body.read(&mut chunk) {
            Ok(0) => Part::End,
            Ok(count) => {
                chunk.truncate(count);
                Part::Bytes(chunk)
            }
            Err(error) => Part::Failed(explained(error.into())),
        };
        let last = !matches!(part, Part::Bytes(_));
        if sender.send(part).is_err() || last {
            return;
        }
    }
}

fn explained(error: ureq::Error) -> NetworkFailure {
    use ureq::{Error, Timeout};
    match error {
        Error::HostNotFound => NetworkFailure::HostNotFound,
        Error::Timeout(Timeout::Resolve) => NetworkFailure::Timeout("looking up the server's name"),
        Error::Timeout(Timeout::Connect) => NetworkFailure::Timeout("connecting"),
        Error::Timeout(_) => NetworkFailure::Timeout("waiting for data"),
        // rustls reports its own verdicts as this kind of I/O error.
        Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            NetworkFailure::Tls(error.to_string())
        }
        Error::Io(error) => NetworkFailure::Connection(error),
        Error::ConnectionFailed => lost(),
        Error::Rustls(error) => NetworkFailure::Tls(error.to_string()),
        Error::Tls(problem) => NetworkFailure::Tls(problem.to_owned()),
        Error::ConnectProxyFailed(problem) => NetworkFailure::Proxy(problem),
        Error::TooManyRedirects => NetworkFailure::Redirects,
        Error::RequireHttpsOnly(_) => NetworkFailure::Insecure,
        Error::Other(error) if error.is::<Refused>() => match error.downcast::<Refused>() {
            Ok(refused) => NetworkFailure::Private(refused.0),
            Err(error) => NetworkFailure::Protocol(error.to_string()),
        },
        Error::BadUri(problem) => NetworkFailure::Url(problem),
        Error::Http(problem) => NetworkFailure::Url(problem.to_string()),
        other => NetworkFailure::Protocol(other.to_string()),
    }
}

/// Returns the proxy for an address, by the conventions of curl: the scheme's own variable, then
/// `ALL_PROXY`; `NO_PROXY` names hosts and domains that need none.
fn proxy_for(environment: &Environment, url: &str) -> Result<Option<Proxy>, DownloadError> {
    let variables: &[&'static str] = if url.starts_with("https://") {
        &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
    } else {
        &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
    };
    let named =
        variables.iter().find_map(|variable| Some((*variable, environment.text(variable)?)));
    let Some((variable, text)) = named else {
        return Ok(None);
    };
    let unusable = || DownloadError::Proxy { proxy: without_user(text), variable };
    let parsed = Proxy::new(text).map_err(|_| unusable())?;
    if !matches!(parsed.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
        return Err(unusable());
    }
    let mut builder = Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(user) = parsed.username() {
        builder = builder.username(user);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    let exceptions =
        environment.text("no_proxy").or_else(|| environment.text("NO_PROXY")).unwrap_or("");
    for host in exceptions.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        // A domain also covers everything below it.
        builder = builder.no_proxy(host.trim_start_matches('.'));
        if !host.contains('*') {
            builder = builder.no_proxy(&format!(".{}", host.trim_start_matches('.')));
        }
    }
    builder.build().map(Some).map_err(|_| unusable())
}

/// Returns a proxy's address without user and password.
fn without_user(address: &str) -> String {
    match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => address.to_owned(),
    }
}
