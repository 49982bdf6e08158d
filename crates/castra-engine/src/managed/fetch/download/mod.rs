//! Downloads over HTTP that can be interrupted anywhere and resumed, and that end with the pinned
//! bytes or not at all.
//!
//! ```text
//! for each address (a mirror first):
//!   attempt ─► whole ─► digest right ─► published
//!      │         └► digest wrong: resumed? discard, one full download: else next address
//!      ├► answer does not fit the partial (206, 416): discard, one full download
//!      ├► too slow, and there is another address: next address, from the last byte
//!      ├► network error, 408, 429, 5xx: wait, resume from the last byte
//!      └► anything else: next address
//! ```
//!
//! The partial is named by its expected digest, so that every later download of the same bytes
//! finds it, and it survives a failure and Ctrl-C.

use std::path::PathBuf;

use crate::files::{Digest, DigestMismatch};
use crate::layout::CacheLayout;
use crate::managed::error::ImageError;
use crate::managed::job::{Job, Progress};
use crate::managed::spec::ManagedArtifactSpec;

mod address;
mod attempt;
pub(crate) mod error;
mod headers;
mod http;
mod partial;
mod retry;
mod small;
mod writeback;

pub use error::{DownloadError, NetworkFailure};
pub(crate) use headers::looks_like_html;
pub(crate) use small::{fetch_small, length_of};

use attempt::{Ended, attempt};
use http::Client;
use partial::Partial;
use retry::Retries;

/// Fetches the pinned bytes from the first address that has them. The caller holds the blob's lock.
pub(crate) fn fetch(
    job: &Job,
    cache: &CacheLayout,
    artifact: &ManagedArtifactSpec,
    urls: &[String],
) -> Result<PathBuf, ImageError> {
    let mut partial = Partial::open(job, cache, artifact)?;
    let mut progress = job.progress(artifact.role, artifact.size_bytes);
    let outcome = if partial.is_right() {
        // An earlier castra was interrupted between the last byte and the publication.
        progress.started(&artifact.source.to_string(), partial.length());
        Ok(())
    } else if job.context.offline {
        Err(ImageError::Offline { what: artifact.source.to_string() })
    } else {
        from_any(job, artifact, urls, &mut partial, &mut progress)
    };
    if let Err(error) = outcome {
        partial.clean_up()?;
        return Err(error);
    }
    let length = partial.length();
    let blob = partial.publish()?;
    progress.finished(length);
    Ok(blob)
}

/// Fetches bytes that nothing pins yet from the first address that has any, keeps them under their
/// digest, and returns digest and length. Mirrors are not asked: only the image's own address can
/// say what it should be.
pub(crate) fn fetch_unpinned(
    job: &Job,
    cache: &CacheLayout,
    artifact: &ManagedArtifactSpec,
    urls: &[String],
) -> Result<(Digest, u64), ImageError> {
    if job.context.offline {
        return Err(ImageError::Offline { what: artifact.source.to_string() });
    }
    let mut partial = Partial::open_unpinned(job, cache, artifact)?;
    let mut progress = job.progress(artifact.role, artifact.size_bytes);
    if let Err(error) = from_any(job, artifact, urls, &mut partial, &mut progress) {
        partial.discard()?;
        partial.clean_up()?;
        return Err(error);
    }
    if headers::looks_like_html(&partial.first_bytes()?) {
        partial.discard()?;
        partial.clean_up()?;
        return Err(ImageError::WebPage { from: artifact.source.to_string() });
    }
    let (digest, length) = (partial.pin(), partial.length());
    partial.publish()?;
    Ok((digest, length))
}

/// Checks that one of the addresses answers within the time that the default choice allows.
///
/// # Errors
/// Returns the failure of the last address.
pub(crate) fn probe(job: &Job, urls: &[String]) -> Result<(), ImageError> {
    let mut last = None;
    for url in with_mirrors(job, urls) {
        match attempt::probe(job, &url) {
            Err(error) if error.is_unreachable() => last = Some(error),
            other => return other,
        }
    }
    last.map_or(Ok(()), Err)
}

fn from_any(
    job: &Job,
    artifact: &ManagedArtifactSpec,
    urls: &[String],
    partial: &mut Partial,
    progress: &mut Progress,
) -> Result<(), ImageError> {
    let urls = if partial.is_pinned() { with_mirrors(job, urls) } else { urls.to_vec() };
    let mut worst: Option<ImageError> = None;
    for (index, url) in urls.iter().enumerate() {
        progress.started(url, partial.length());
        let is_last = index + 1 == urls.len();
        let Err(error) = from_one(job, artifact, (url, is_last), partial, progress) else {
            return Ok(());
        };
        if !error.is_about_one_address() {
            return Err(error);
        }
        if let Some(next) = urls.get(index + 1) {
            job.warn(format!("{}; trying {next}", crate::error::one_line(&error)));
        }
        // Bytes that were tampered with are worse news than a server that does not answer.
        if worst.as_ref().is_none_or(ImageError::is_unreachable) {
            worst = Some(error);
        }
    }
    worst.map_or(Ok(()), Err)
}

/// Returns the mirrors' addresses of the same file, if there are mirrors, and then the pinned ones.
fn with_mirrors(job: &Job, urls: &[String]) -> Vec<String> {
    let file_name = urls.first().and_then(|url| {
        let path = url.split(['?', '#']).next().unwrap_or(url);
        path.rsplit('/').next().filter(|name| !name.is_empty())
    });
    let mirrored = |name| {
        job.context.mirrors.iter().map(move |base| format!("{}/{name}", base.trim_end_matches('/')))
    };
    file_name.into_iter().flat_map(mirrored).chain(urls.iter().cloned()).collect()
}

fn from_one(
    job: &Job,
    artifact: &ManagedArtifactSpec,
    (url, is_last): (&str, bool),
    partial: &mut Partial,
    progress: &mut Progress,
) -> Result<(), ImageError> {
    let client = Client::new(job.context, job.timeouts, url)?;
    let mut retries = Retries::new(job.timeouts);
    // A full download is made once more if the answer or the digest shows that the partial was a
    // bad start.
    let mut started_over = false;
    loop {
        let before = partial.length();
        let reason = match attempt(job, &client, url, artifact.size_bytes, partial, progress)? {
            Ended::Whole if partial.is_right() || !partial.is_pinned() => return Ok(()),
            Ended::Whole => {
                let mismatch = mismatch(url, artifact, partial)?;
                let resumed = partial.was_resumed();
                partial.discard()?;
                if !resumed || started_over {
                    return Err(mismatch.into());
                }
                mismatch.to_string()
            }
            Ended::Unfit(error) if started_over || before == 0 => return Err(error.into()),
            Ended::Unfit(error) => {
                partial.discard()?;
                crate::error::one_line(&error)
            }
            // Slowness does not pass within seconds, and another address may be faster.
            Ended::Broken { error, .. } if error.is_drip() && !is_last => {
                return Err(error.keeping(partial.length()).into());
            }
            Ended::Broken { error, wait } => {
                let reason = crate::error::one_line(&error);
                let gained = partial.length().saturating_sub(before);
                match retries.next(gained, wait) {
                    Some(pause) => {
                        if !partial.is_pinned() && !partial.has_strong_etag(url) {
                            partial.discard()?;
                        }
                        progress.retry(reason, pause);
                        retry::sleep(job, pause)?;
                        continue;
                    }
                    None => return Err(error.keeping(partial.length()).into()),
                }
            }
        };
        started_over = true;
        progress.retry(reason, std::time::Duration::ZERO);
    }
}

fn mismatch(
    url: &str,
    artifact: &ManagedArtifactSpec,
    partial: &Partial,
) -> Result<DigestMismatch, ImageError> {
    let html = headers::looks_like_html(&partial.first_bytes()?);
    let (expected, found) = (artifact.digest.clone(), partial.digest());
    Ok(DigestMismatch { from: url.to_owned(), expected, found, html })
}
