//! Variables of castra's own that have to be understood. A value that is not is an error, since
//! castra would do something else than its user wants.

use std::net::{IpAddr, SocketAddr};

use ureq::http::Uri;

use super::{Environment, NoHome};
use crate::error::{Explain, Kind};
use crate::sanitize::sanitize_text;

/// Variable that names a server to ask first for every download.
pub const MIRROR: &str = "CASTRA_MIRROR";
/// Variable by which the user allows private addresses. No file can set it.
pub const ALLOW_PRIVATE_SOURCES: &str = "CASTRA_ALLOW_PRIVATE_SOURCES";
/// Variable that names the accelerator to use.
pub const ACCELERATOR: &str = "CASTRA_ACCELERATOR";

/// Error for an environment that castra cannot work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// There is no place for the cache.
    #[error(transparent)]
    NoHome(#[from] NoHome),
    /// A variable has a value that castra does not understand.
    #[error(transparent)]
    Variable(#[from] BadVariable),
}

impl Explain for EnvironmentError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoHome(error) => error.kind(),
            Self::Variable(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoHome(error) => error.hint(),
            Self::Variable(error) => error.hint(),
        }
    }
}

/// Error for a variable whose value castra does not understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is `{value}`, which is not {expected}")]
pub struct BadVariable {
    /// Name of the variable.
    pub name: &'static str,
    /// Its value, without the user and password of a URL.
    pub value: String,
    /// Values that it may have, as part of a sentence.
    pub expected: &'static str,
}

impl Explain for BadVariable {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hint(&self) -> Option<String> {
        Some(format!("Correct it, or unset it: unset {}", self.name))
    }
}

impl Environment {
    /// Parses a variable's value; an empty one counts as unset. `expected` completes the sentence
    /// "which is not …".
    ///
    /// # Errors
    /// Returns [`BadVariable`] if `parse` returns `None`, or for a value that is not UTF-8.
    pub fn parse<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, BadVariable> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let bad = || {
            let value = value.to_string_lossy();
            let shown = value.rsplit_once('@').map_or(&*value, |(_, host)| host);
            BadVariable { name, value: sanitize_text(shown), expected }
        };
        value.to_str().and_then(parse).map(Some).ok_or_else(bad)
    }

    /// Returns the base URL in `CASTRA_MIRROR`.
    ///
    /// # Errors
    /// Returns [`BadVariable`].
    pub(super) fn mirror(&self) -> Result<Option<Uri>, BadVariable> {
        self.parse(MIRROR, "an https:// or http:// address", |text| {
            let uri: Uri = text.parse().ok()?;
            let is_web = matches!(uri.scheme_str(), Some("https" | "http"));
            let is_base = uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none();
            (is_web && is_base).then_some(uri)
        })
    }
}

/// Addresses that are not public and that images may come from nevertheless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivateSources {
    /// All of them.
    All,
    /// Only these, at any port if none is given.
    These(Vec<(IpAddr, Option<u16>)>),
}

impl PrivateSources {
    /// Reads the addresses from `CASTRA_ALLOW_PRIVATE_SOURCES`: `1`, or a list such as
    /// `127.0.0.1:8000,10.0.0.5`.
    ///
    /// # Errors
    /// Returns [`BadVariable`]: an address that is mistyped is not one that its user allows.
    pub(crate) fn of(environment: &Environment) -> Result<Self, BadVariable> {
        let expected = "`1` or a list of addresses, such as 127.0.0.1:8000,10.0.0.5";
        let sources = environment.parse(ALLOW_PRIVATE_SOURCES, expected, |text| {
            match text.trim().to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" => Some(Self::All),
                "0" | "false" | "no" => Some(Self::default()),
                list => list.split(',').map(|entry| address(entry.trim())).collect(),
            }
        });
        sources.map(Option::unwrap_or_default)
    }

    /// Returns `true` if this address is allowed.
    pub(crate) fn allow(&self, address: SocketAddr) -> bool {
        match self {
            Self::All => true,
            Self::These(list) => list.iter().any(|(ip, port)| {
                *ip == address.ip().to_canonical() && port.is_none_or(|port| port == address.port())
            }),
        }
    }
}

impl Default for PrivateSources {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl FromIterator<(IpAddr, Option<u16>)> for PrivateSources {
    fn from_iter<I: IntoIterator<Item = (IpAddr, Option<u16>)>>(addresses: I) -> Self {
        Self::These(addresses.into_iter().collect())
    }
}

fn address(text: &str) -> Option<(IpAddr, Option<u16>)> {
    let with_port = text.parse().map(|one: SocketAddr| (one.ip().to_canonical(), Some(one.port())));
    with_port.or_else(|_| text.parse().map(|ip: IpAddr| (ip.to_canonical(), None))).ok()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn a_mirror_is_a_base_url() {
        let mirror = |text: &str| Environment::of([(MIRROR, text)]).mirror();
        assert_eq!(mirror(""), Ok(None));
        for good in ["https://m.example", "http://127.0.0.1:8000/castra/"] {
            assert!(matches!(mirror(good), Ok(Some(_))), "{good}");
        }
        for bad in ["m.example", "/srv/mirror", "ftp://m.example", "https://", "https://m/?x", " "]
        {
            let error = mirror(bad).expect_err(bad);
            assert!(error.to_string().starts_with("CASTRA_MIRROR is `"), "{error}");
        }
        let secret = mirror("ftp://me:secret@m.example/").expect_err("ftp").to_string();
        assert!(secret.contains("m.example") && !secret.contains("secret"), "{secret}");
    }

    #[test]
    fn a_mistyped_address_is_an_error() {
        let sources =
            |text: &str| PrivateSources::of(&Environment::of([(ALLOW_PRIVATE_SOURCES, text)]));
        assert_eq!(sources("1"), Ok(PrivateSources::All));
        for none in ["", "0", "false"] {
            assert_eq!(sources(none), Ok(PrivateSources::default()), "{none}");
        }
        let listed = sources("127.0.0.1:8000, ::1").expect("a list");
        assert!(listed.allow("[::ffff:127.0.0.1]:8000".parse().expect("an address")));
        for bad in ["everything", "localhost", "10.0.0.0/8", "127.0.0.1:", "127.0.0.1,", "2"] {
            assert!(sources(bad).is_err(), "{bad}");
        }
        let bytes = OsString::from_vec(vec![0xff]);
        assert!(PrivateSources::of(&Environment::of([(ALLOW_PRIVATE_SOURCES, bytes)])).is_err());
    }
}
