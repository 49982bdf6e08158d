//! Failures of a download, and what to do about them.

use std::time::Duration;

use crate::error::{Explain, Kind};
use crate::files::Size;

/// Why a download from one address failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server could not be reached, or the connection broke and could not be made again.
    #[error("cannot download {url}{}", via(proxy.as_ref()))]
    Network {
        /// The address.
        url: String,
        /// The proxy that was used.
        proxy: Option<String>,
        /// What happened.
        #[source]
        failure: NetworkFailure,
        /// How many bytes are kept for the next try.
        kept_bytes: u64,
    },
    /// The server answered with an error.
    #[error("the server answers {status} for {url}{}", come_back(retry_after.as_ref()))]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The server offers another number of bytes than the pinned one.
    #[error(
        "the server offers {found} bytes for {url}, and {expected} were expected{}{}",
        encoded(encoding.as_ref()),
        if *html { "; it looks like a web page" } else { "" }
    )]
    Length {
        /// The address.
        url: String,
        /// The pinned number.
        expected: u64,
        /// The offered number.
        found: u64,
        /// Whether it starts as a web page does.
        html: bool,
        /// `Content-Encoding`, where there is one although none was asked for.
        encoding: Option<String>,
    },
    /// The server sends more and more.
    #[error("the server sends more than the expected {limit} for {url}")]
    Endless {
        /// The address.
        url: String,
        /// What would have been enough.
        limit: Size,
    },
    /// Asked for the rest of the file, the server answered with something else.
    #[error("the server's answer for the rest of {url} does not fit: {problem}")]
    BadRange {
        /// The address.
        url: String,
        /// What does not fit.
        problem: String,
    },
    /// The proxy that the environment names cannot be used.
    #[error("the proxy `{proxy}` in {variable} cannot be used: only http:// and https:// proxies are")]
    Proxy {
        /// Its address, without user and password.
        proxy: String,
        /// The variable that names it.
        variable: &'static str,
    },
}

/// What went wrong between here and a server.
#[derive(Debug, thiserror::Error)]
pub enum NetworkFailure {
    /// The name has no address.
    #[error("the server's name cannot be resolved")]
    HostNotFound,
    /// Nothing came for too long.
    #[error("timed out while {0}")]
    Timeout(&'static str),
    /// The connection could not be made, or broke.
    #[error("{0}")]
    Connection(std::io::Error),
    /// Less came than the lowest rate allows.
    #[error("only {found_bytes} bytes came in {} s", time.as_secs_f64().round())]
    TooSlow {
        /// Bytes that came …
        found_bytes: u64,
        /// … in this time.
        time: Duration,
    },
    /// The address leads to this machine, the local network or something else that is not public.
    #[error("it leads to {0}, which is not a public address")]
    Private(std::net::SocketAddr),
    /// The body ended early.
    #[error("the connection ended after {found} of {expected} bytes")]
    CutOff {
        /// Bytes that have come, those of earlier attempts included.
        found: u64,
        /// Bytes that should have.
        expected: u64,
    },
    /// The server cannot prove who it is, or TLS failed in another way.
    #[error("no safe connection: {0}")]
    Tls(String),
    /// The proxy did not let this through.
    #[error("the proxy refused: {0}")]
    Proxy(String),
    /// One redirect led to another, too often.
    #[error("too many redirects")]
    Redirects,
    /// A redirect from https to http.
    #[error("it redirects from https to an unencrypted address")]
    Insecure,
    /// What came is not HTTP.
    #[error("the answer is not proper HTTP: {0}")]
    Protocol(String),
    /// The address is none.
    #[error("the address is not valid: {0}")]
    Url(String),
}

impl NetworkFailure {
    /// Whether the same request may succeed a little later.
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
    /// Whether the server could not be reached, or does not have the file, as opposed to having another one.
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

    /// Returns `true` if bytes came, and too few.
    pub(super) fn is_drip(&self) -> bool {
        matches!(self, Self::Network { failure: NetworkFailure::TooSlow { .. }, .. })
    }

    /// The same, noting how much is kept.
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
            Self::Network { failure: NetworkFailure::Tls(problem), .. } if is_about_time(problem) => {
                let now = jiff::Timestamp::now().strftime("%F %H:%M UTC");
                format!("This machine's clock says {now}. If that is wrong, set it and try again.")
            }
            Self::Network { failure: NetworkFailure::Private(address), .. } => format!(
                "An image comes from the public internet unless you allow more. If you know and mean this address, run \
                 the command with {}={address} in its environment.",
                super::address::SWITCH
            ),
            Self::Network { failure: NetworkFailure::Tls(_), .. } => {
                "If a proxy of your company opens encrypted connections, its certificate must be in the system's trust \
                 store (or name it in SSL_CERT_FILE)."
                    .to_owned()
            }
            Self::Network { kept_bytes: 0, .. } => {
                "Check the network and the proxy settings (HTTPS_PROXY, NO_PROXY), or name a mirror in CASTRA_MIRROR."
                    .to_owned()
            }
            Self::Network { kept_bytes, .. } => {
                format!("The {} that came are kept: run the same command again to go on from there.", Size(*kept_bytes))
            }
            Self::Status { retry_after: Some(_), .. } => "Try again later.".to_owned(),
            Self::Length { html: true, .. } => {
                "Something between here and the server answered with a page of its own (a login page of the network, a \
                 proxy's message). Open the address in a browser, or try another network."
                    .to_owned()
            }
            Self::Proxy { variable, .. } => format!("Set {variable} to an http:// address, or unset it."),
            Self::Status { .. } | Self::Length { .. } | Self::Endless { .. } | Self::BadRange { .. } => {
                "Try again later, or name a mirror in CASTRA_MIRROR.".to_owned()
            }
        })
    }
}

/// Whether a certificate is refused for the time it is, which is more often wrong than the certificate.
fn is_about_time(problem: &str) -> bool {
    problem.contains("expired") || problem.contains("not valid yet")
}

fn via(proxy: Option<&String>) -> String {
    proxy.map_or_else(String::new, |proxy| format!(" through the proxy {proxy}"))
}

fn come_back(after: Option<&Duration>) -> String {
    after.map_or_else(String::new, |after| format!(" and asks to come back in {} s", after.as_secs()))
}

fn encoded(encoding: Option<&String>) -> String {
    encoding.map_or_else(String::new, |encoding| format!(" (encoded as {encoding}, which was not asked for)"))
}
