//! Proxies of this machine's environment, as programs in a guest reach them.
//!
//! A `castra.toml` may pass them on, and may be a stranger's: users and passwords are left out. One
//! that listens on this machine's loopback is at the gateway of the guest's network.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};

use castra_wire::GATEWAY_ADDRESS;

use crate::context::Environment;

/// Variables that name a proxy, or hosts that are reached without one, in lower case.
const NAMES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"];

/// Returns the variables for commands in a guest. Programs disagree about the case of the names, so
/// each has both.
pub(crate) fn for_guest(environment: &Environment) -> Vec<(OsString, OsString)> {
    let mut variables = Vec::new();
    for name in NAMES {
        let upper = name.to_ascii_uppercase();
        let Some(value) = value(environment, name, &upper) else { continue };
        let value = if name == "no_proxy" { value.to_owned() } else { seen_from_guest(value) };
        for name in [name, &upper] {
            variables.push((name.into(), value.clone().into()));
        }
    }
    variables
}

/// Returns the name of a variable whose proxy has a user or a password, which guests do not get.
pub(crate) fn with_credentials(environment: &Environment) -> Option<String> {
    NAMES.into_iter().find_map(|name| {
        let upper = name.to_ascii_uppercase();
        let has_some = value(environment, name, &upper).is_some_and(|url| Parts::of(url).has_user);
        has_some.then_some(upper)
    })
}

fn value<'a>(environment: &'a Environment, lower: &str, upper: &str) -> Option<&'a str> {
    environment.get(lower).or_else(|| environment.get(upper))?.to_str()
}

/// A proxy's address: `scheme://user:password@host:port/path`, of which all but the host may be
/// missing.
struct Parts<'a> {
    /// Scheme with its `://`, or nothing.
    scheme: &'a str,
    has_user: bool,
    /// Host and port.
    authority: &'a str,
    path: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Self {
        // A password may have anything, too.
        let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let end = url.find("://").filter(|at| is_scheme(&url[..*at]));
        let (scheme, rest) = url.split_at(end.map_or(0, |at| at + 3));
        // A password may have a slash although it must not.
        let (has_user, rest) =
            rest.rsplit_once('@').map_or((false, rest), |(_, host)| (true, host));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self { scheme, has_user, authority, path }
    }

    /// Returns the host, and what follows it.
    fn host(&self) -> (&'a str, &'a str) {
        let after_brackets = self.authority.find(']').map_or(0, |at| at + 1);
        let colon = self.authority[after_brackets..].find(':');
        self.authority.split_at(colon.map_or(self.authority.len(), |at| after_brackets + at))
    }
}

fn seen_from_guest(url: &str) -> String {
    let parts = Parts::of(url);
    let (host, port) = parts.host();
    let gateway = Ipv4Addr::from(GATEWAY_ADDRESS).to_string();
    let host = if is_loopback(host) { &gateway } else { host };
    format!("{}{host}{port}{}", parts.scheme, parts.path)
}

fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_name = bare.strip_suffix('.').unwrap_or(bare).eq_ignore_ascii_case("localhost");
    let is_own = |address: IpAddr| {
        let address = address.to_canonical();
        address.is_loopback() || address.is_unspecified()
    };
    is_name || bare.parse().is_ok_and(is_own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(variables: &[(&str, &str)]) -> Vec<(String, String)> {
        let environment = Environment::of(variables.iter().copied());
        let text = |text: OsString| text.into_string().expect("UTF-8");
        for_guest(&environment).into_iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    #[test]
    fn a_proxy_on_loopback_is_at_the_gateway_and_no_password_is_passed() {
        for (url, expected) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("http://proxy.example:3128/", "http://proxy.example:3128/"),
            ("http://ada:p@ss@proxy.example:3128", "http://proxy.example:3128"),
            ("http://127.0.0.1:3128", "http://10.0.2.2:3128"),
            ("127.1.2.3:3128", "10.0.2.2:3128"),
            ("LOCALHOST:3128", "10.0.2.2:3128"),
            ("socks5h://[::1]:1080", "socks5h://10.0.2.2:1080"),
            ("http://[2001:db8::1]:80", "http://[2001:db8::1]:80"),
            ("http://ada@localhost", "http://10.0.2.2"),
            ("http://localhost.example:80", "http://localhost.example:80"),
            ("http://ada:p/ss@localhost:80", "http://10.0.2.2:80"),
            ("user:a://b@host:3128", "host:3128"),
            ("http://localhost.:3128", "http://10.0.2.2:3128"),
            ("http://[::ffff:127.0.0.1]:3128", "http://10.0.2.2:3128"),
            ("0.0.0.0:3128", "10.0.2.2:3128"),
            ("", ""),
            ("]:", "]:"),
        ] {
            assert_eq!(seen_from_guest(url), expected, "{url}");
        }
    }

    #[test]
    fn both_cases_are_set_and_other_variables_are_not() {
        let both = |value: &str, names: [&str; 2]| names.map(|name| (name.into(), value.into()));
        assert_eq!(
            passed(&[
                ("HTTPS_PROXY", "http://localhost:1"),
                ("no_proxy", "localhost,.example"),
                ("PATH", "/bin"),
                ("ftp_proxy", ""),
            ]),
            [
                both("http://10.0.2.2:1", ["https_proxy", "HTTPS_PROXY"]),
                both("localhost,.example", ["no_proxy", "NO_PROXY"])
            ]
            .concat()
        );
        assert_eq!(passed(&[]), []);
    }
}
