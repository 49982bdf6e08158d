//! URLs of artifacts and mirrors.

use toml::Spanned;
use ureq::http::Uri;

use super::super::diagnostics::{Problem, Problems, quoted};

/// Error for a URL that cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum UrlProblem {
    #[error("{} is not a URL", quoted(.0))]
    Malformed(String),
    #[error("{} cannot be fetched over {}", quoted(.url), quoted(.scheme))]
    Scheme { url: String, scheme: String },
    #[error("the mirror {} is not an `https://` URL", quoted(.0))]
    InsecureMirror(String),
}

impl Problem for UrlProblem {
    fn help(&self) -> String {
        match self {
            Self::Malformed(_) => {
                "Write it in full, for instance `https://example.org/disk.qcow2`; a file on this \
                machine is named with `path`."
            }
            Self::Scheme { .. } => {
                "Castra speaks https and http. Fetch the file yourself and name it with `path`."
            }
            Self::InsecureMirror(_) => "Use the mirror's https address.",
        }
        .to_owned()
    }
}

/// Checks the URL of an artifact: https, or http, which the pinned digest makes safe.
pub(super) fn check_artifact(url: &Spanned<&str>, problems: &mut Problems) -> Option<String> {
    check(url, problems).map(|_| (*url.get_ref()).to_owned())
}

/// Checks the base URL of a mirror and removes a trailing slash. A mirror is asked for everything,
/// so it must be https.
pub(super) fn check_mirror(url: &Spanned<&str>, problems: &mut Problems) -> Option<String> {
    let uri = check(url, problems)?;
    if uri.scheme_str() != Some("https") || uri.query().is_some() {
        problems.error(url.span(), &UrlProblem::InsecureMirror((*url.get_ref()).to_owned()));
        return None;
    }
    Some(url.get_ref().trim_end_matches('/').to_owned())
}

fn check(url: &Spanned<&str>, problems: &mut Problems) -> Option<Uri> {
    let text = *url.get_ref();
    let problem = match text.parse::<Uri>() {
        Ok(uri) if uri.host().is_none_or(str::is_empty) || uri.scheme().is_none() => {
            UrlProblem::Malformed(text.to_owned())
        }
        Ok(uri) if matches!(uri.scheme_str(), Some("https" | "http")) => return Some(uri),
        Ok(uri) => {
            let scheme = uri.scheme_str().unwrap_or_default().to_owned();
            UrlProblem::Scheme { url: text.to_owned(), scheme }
        }
        Err(_) => UrlProblem::Malformed(text.to_owned()),
    };
    problems.error(url.span(), &problem);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether a URL has problems as an artifact's and as a mirror's.
    fn problems(url: &str) -> [bool; 2] {
        let url = Spanned::new(0..url.len(), url);
        [check_artifact, check_mirror].map(|check| {
            let mut problems = Problems::default();
            check(&url, &mut problems).is_none()
        })
    }

    #[test]
    fn only_the_web_is_fetched_from_and_a_mirror_is_encrypted() {
        for (url, refused) in [
            ("https://example.org/disk", [false, false]),
            ("http://example.org/disk", [false, true]),
            ("https://example.org/?disk", [false, true]),
            ("ftp://example.org/disk", [true, true]),
            ("file://localhost/etc/passwd", [true, true]),
            ("file:///etc/passwd", [true, true]),
            ("https:///disk", [true, true]),
            ("https://:443/disk", [true, true]),
            ("/etc/passwd", [true, true]),
            ("example.org", [true, true]),
        ] {
            assert_eq!(problems(url), refused, "{url}");
        }
    }
}
