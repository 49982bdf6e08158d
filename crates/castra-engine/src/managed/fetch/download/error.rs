//! Failures of a download, and what to do about them.

use std::time::Duration;

use crate::error::{Explain, Kind};
use crate::size::ByteSize;

/// Failure of a download from one address.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server could not be reached, or the connection broke and could not be re-established.
    #[error("cannot download {url}{}", via(proxy.as_ref()))]
    Network {
        /// URL of the download.
        url: String,
        /// Proxy that was used.
        proxy: Option<String>,
        /// The failure.
        #[source]
        failure: NetworkFailure,
        /// Bytes that are kept for the next try.
        kept_bytes: u64,
    },
    /// The server answered with an error.
    #[error("the server responded {status} for {url}{}", come_back(retry_after.as_ref()))]
    Status {
        /// URL of the download.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Time after which the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The server offers another number of bytes than the pinned one.
    #[error(
        "the server offers {found} bytes for {url}, but {expected} were expected{}{}",
        encoded(encoding.as_ref()),
        if *html { "; it looks like a web page" } else { "" }
    )]
    Length {
        /// URL of the download.
        url: String,
        /// Pinned number of bytes.
        expected: u64,
        /// Offered number of bytes.
        found: u64,
        /// True if the body starts like a web page.
        html: bool,
        /// `Content-Encoding`, if there is one although none was asked for.
        encoding: Option<String>,
    },
    /// The server sends more than the file can have.
    #[error("the server sends more than the expected {limit} for {url}")]
    Endless {
        /// URL of the download.
        url: String,
        /// Most bytes that were expected.
        limit: ByteSize,
    },
    /// The server's answer for the rest of the file does not fit.
    #[error("the server cannot resume {url}: {problem}")]
    BadRange {
        /// URL of the download.
        url: String,
        /// Reason why it does not fit.
        problem: String,
    },
    /// The proxy that the environment names cannot be used.
    #[error(
        "the proxy `{proxy}` in {variable} cannot be used: only http:// and https:// proxies are"
    )]
    Proxy {
        /// Address of the proxy, without user and password.
        proxy: String,
        /// Variable that names the proxy.
        variable: &'static str,
    },
}

/// Failure between this machine and a server.
#[derive(Debug, thiserror::Error)]
pub enum NetworkFailure {
    /// The name has no address.
    #[error("the server's name cannot be resolved")]
    HostNotFound,
    /// Nothing arrived within the time limit.
    #[error("timed out while {0}")]
    Timeout(&'static str),
    /// The connection could not be made, or broke.
    #[error("{0}")]
    Connection(std::io::Error),
    /// Fewer bytes arrived than the lowest rate allows.
    #[error("only {} received in {} s", ByteSize(*found_bytes), time.as_secs_f64().round())]
    TooSlow {
        /// Bytes that arrived …
        found_bytes: u64,
        /// … in this time.
        time: Duration,
    },
    /// The address is on this machine, in the local network or otherwise not public.
    #[error("it resolves to {0}, which is not a public address")]
    Private(std::net::SocketAddr),
    /// The body ended early.
    #[error("the connection ended after {found} of {expected} bytes")]
    CutOff {
        /// Bytes received, those of earlier attempts included.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// The server cannot prove its identity, or TLS failed in another way.
    #[error("no secure connection: {0}")]
    Tls(String),
    /// The proxy refused the connection.
    #[error("the proxy refused: {0}")]
    Proxy(String),
    /// Too many redirects in a row.
    #[error("too many redirects")]
    Redirects,
    /// A redirect from https to http.
    #[error("it redirects from https to an unencrypted address")]
    Insecure,
    /// The answer is not HTTP.
    #[error("invalid HTTP response: {0}")]
    Protocol(String),
    /// The URL is not valid.
    #[error("invalid address: {0}")]
    Url(String),
}

impl NetworkFailure {
    /// Returns `true` if the same request may succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::HostNotFound
            | Self::Timeout(_)
            | Self::TooSlow { .. }
            | Self::Connection(_)
            | Self::CutOff { .. }
            | Self::Protocol(_) => true,
            Self::Private(_)
            | Self::Tls(_)
            | Self::Proxy(_)
            | Self::Redirects
            | Self::Insecure
            | Self::Url(_) => false,
        }
    }

    /// Returns `true` if it took long to find out.
    pub(super) fn is_slowness(&self) -> bool {
        matches!(self, Self::Timeout(_) | Self::TooSlow { .. })
    }
}

impl DownloadError {
    /// Returns `true` if the server could not be reached or does not have the file, as opposed to
    /// having another one.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Status { .. } | Self::Proxy { .. })
    }

    /// Returns `true` if it took long to find out that the server cannot be reached.
    pub(crate) fn is_slowness(&self) -> bool {
        matches!(self, Self::Network { failure, .. } if failure.is_slowness())
    }

    /// Returns `true` if the server answered, with an error.
    pub(super) fn is_status(&self) -> bool {
        matches!(self, Self::Status { .. })
    }

    /// Returns `true` if bytes arrived, but too slowly.
    pub(super) fn is_drip(&self) -> bool {
        matches!(self, Self::Network { failure: NetworkFailure::TooSlow { .. }, .. })
    }

    /// Returns the error with the number of bytes that are kept.
    pub(super) fn keeping(mut self, bytes: u64) -> Self {
        if let Self::Network { kept_bytes, .. } = &mut self {
            *kept_bytes = bytes;
        }
        self
    }
}

impl Explain for DownloadError {
    fn kind(&self) -> Kind {
        match self {
            Self::Network { .. } | Self::Status { .. } => Kind::Unavailable,
            Self::Length { .. } | Self::Endless { .. } | Self::BadRange { .. } => Kind::Data,
            Self::Proxy { .. } => Kind::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Network { failure: NetworkFailure::Tls(problem), .. }
                if is_about_time(problem) =>
            {
                let now = jiff::Timestamp::now().strftime("%F %H:%M UTC");
                format!("This machine's clock says {now}. If that is wrong, set it and try again.")
            }
            Self::Network { failure: NetworkFailure::Private(address), .. } => format!(
                "Images may come only from public addresses, unless you allow others. If you \
                trust this address, run the command with {}={address} in its environment.",
                crate::context::ALLOW_PRIVATE_SOURCES
            ),
            Self::Network { failure: NetworkFailure::Tls(_), .. } => {
                "If a company proxy intercepts encrypted connections, its certificate must be in \
                the system's trust store (or in SSL_CERT_FILE)."
                    .to_owned()
            }
            Self::Network { kept_bytes: 0, .. } => {
                "Check the network and the proxy settings (HTTPS_PROXY, NO_PROXY), or name a \
                mirror in CASTRA_MIRROR."
                    .to_owned()
            }
            Self::Network { kept_bytes, .. } => {
                format!("{} are kept; run the command again to resume.", ByteSize(*kept_bytes))
            }
            Self::Status { retry_after: Some(_), .. } => "Try again later.".to_owned(),
            Self::Length { html: true, .. } => {
                "A captive portal or a proxy probably responded instead of the server. Open the \
                address in a browser, or try another network."
                    .to_owned()
            }
            Self::Proxy { variable, .. } => {
                format!("Set {variable} to an http:// address, or unset it.")
            }
            Self::Status { .. }
            | Self::Length { .. }
            | Self::Endless { .. }
            | Self::BadRange { .. } => {
                "Try again later, or name a mirror in CASTRA_MIRROR.".to_owned()
            }
        })
    }
}

/// Returns `true` if a certificate is refused because of the current time, since the clock is wrong
/// more often than the certificate.
fn is_about_time(problem: &str) -> bool {
    problem.contains("expired") || problem.contains("not valid yet")
}

fn via(proxy: Option<&String>) -> String {
    proxy.map_or_else(String::new, |proxy| format!(" through the proxy {proxy}"))
}

fn come_back(after: Option<&Duration>) -> String {
    after.map_or_else(String::new, |after| format!(" and asks to retry in {} s", after.as_secs()))
}

fn encoded(encoding: Option<&String>) -> String {
    encoding.map_or_else(String::new, |encoding| {
        format!(" (encoded as {encoding}, which was not requested)")
    })
}
