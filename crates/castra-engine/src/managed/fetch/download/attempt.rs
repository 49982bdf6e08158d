//! One request for the missing bytes, and the meaning of its answer.

use std::time::{Duration, Instant};

use super::error::{DownloadError, NetworkFailure};
use super::headers::{self, Head};
use super::http::{Answer, Client, Next, Request, Silence};
use super::partial::{Origin, Partial};
use super::retry::Retries;
use crate::failpoint::{self, Point};
use crate::files::{self, OVERLAY_BYTES, Peak};
use crate::managed::error::ImageError;
use crate::managed::job::{Job, Progress};
use crate::managed::timeouts::Timeouts;
use crate::size::ByteSize;

/// Longest download whose size is not pinned, in bytes.
const MAX_UNPINNED_BYTES: u64 = 64 << 30;

/// End of an attempt after which the download can continue.
pub(super) enum Ended {
    /// The server has sent all it has; the digest decides.
    Whole,
    /// The connection broke, or the server asks to come back later; the bytes received are kept.
    Broken {
        /// The failure.
        error: DownloadError,
        /// Time after which the server wants to be asked again.
        wait: Option<Duration>,
    },
    /// The answer does not fit the bytes present.
    Unfit(DownloadError),
}

/// Requests the missing bytes and appends them to the partial.
///
/// # Errors
/// Returns errors that make further attempts at this address pointless.
pub(super) fn attempt(
    job: &Job,
    client: &Client,
    url: &str,
    pinned_bytes: Option<u64>,
    partial: &mut Partial,
    progress: &mut Progress,
) -> Result<Ended, ImageError> {
    let cancel = &job.context.cancel;
    let answer = match client.get(&request(url, partial), cancel, None) {
        Ok(answer) => answer,
        Err(silence) => return broken(client, url, silence),
    };
    let start = partial.length();
    let head = &answer.head;
    let total = match head.status {
        200 => {
            // The whole file. If only the rest was requested, the server has ignored the range, or
            // the file has changed since.
            let total = whole(job, &answer, url, pinned_bytes)?;
            partial.restart(Origin {
                url: url.to_owned(),
                etag: head.etag.clone(),
                total_bytes: total,
            })?;
            total
        }
        206 if start > 0 => match fits(head, url, partial, pinned_bytes) {
            Ok(total) => {
                partial.resume();
                total
            }
            Err(problem) => return Ok(Ended::Unfit(bad_range(url, problem))),
        },
        // All bytes are present and were wrong, or the file has become shorter.
        416 if start > 0 => {
            return Ok(Ended::Unfit(bad_range(url, "there is no such range".to_owned())));
        }
        status => return refused(status, head, url),
    };
    let total = pinned_bytes.or(total);
    if let Some(total) = total {
        progress.expect(total);
        if pinned_bytes.is_none() {
            // The space for a pinned size was checked before.
            let (download, image) = (total.saturating_sub(start), total);
            files::require_space(
                partial.directory(),
                &Peak { download, image, overlay: OVERLAY_BYTES, ..Peak::default() },
            )?;
        }
    }
    receive(job, client, url, total, &answer, partial, progress)
}

fn request<'a>(url: &'a str, partial: &Partial) -> Request<'a> {
    let range = (partial.length() > 0).then(|| format!("bytes={}-", partial.length()));
    let etag = partial.origin(url).and_then(|origin| origin.etag.clone());
    // Without a strong ETag the range is requested all the same: the pinned digest shows in the end
    // if it fitted.
    Request { url, range, if_range: etag.filter(|etag| headers::is_strong(etag)) }
}

/// Appends the body to the partial.
fn receive(
    job: &Job,
    client: &Client,
    url: &str,
    total: Option<u64>,
    answer: &Answer,
    partial: &mut Partial,
    progress: &mut Progress,
) -> Result<Ended, ImageError> {
    let limit = total.unwrap_or(MAX_UNPINNED_BYTES);
    let mut pace = Pace::new(job.timeouts);
    loop {
        let next = answer.next(&job.context.cancel, Some(pace.end));
        match next.and_then(|next| pace.check(next)) {
            Ok(Next::Bytes(bytes)) if partial.length() + bytes.len() as u64 > limit => {
                partial.discard()?;
                return Err(
                    DownloadError::Endless { url: url.to_owned(), limit: ByteSize(limit) }.into()
                );
            }
            Ok(Next::Bytes(bytes)) => {
                let before = partial.length();
                partial.append(&bytes)?;
                if (before..partial.length()).contains(&(limit / 2)) {
                    failpoint::reach(Point::BodyHalf);
                }
                progress.at(partial.length());
            }
            Ok(Next::Nothing) => {}
            Ok(Next::End) => break,
            Err(silence) => return broken(client, url, silence),
        }
    }
    let found = partial.length();
    match total.filter(|total| found < *total) {
        Some(expected) => {
            let error = client.failed(url, NetworkFailure::CutOff { found, expected });
            Ok(Ended::Broken { error, wait: None })
        }
        None => {
            failpoint::reach(Point::BodyWhole);
            Ok(Ended::Whole)
        }
    }
}

/// Check that the bytes of a body arrive fast enough, one interval after the other.
pub(super) struct Pace<'a> {
    timeouts: &'a Timeouts,
    bytes: u64,
    start: Instant,
    pub(super) end: Instant,
}

impl<'a> Pace<'a> {
    pub(super) fn new(timeouts: &'a Timeouts) -> Self {
        let start = Instant::now();
        Self { timeouts, bytes: 0, start, end: start + timeouts.pace }
    }

    /// Counts the bytes received.
    ///
    /// # Errors
    /// Returns [`NetworkFailure::TooSlow`] at the end of an interval in which too few bytes
    /// arrived.
    pub(super) fn check(&mut self, next: Next) -> Result<Next, Silence> {
        if let Next::Bytes(bytes) = &next {
            self.bytes += bytes.len() as u64;
        }
        if matches!(next, Next::End) || Instant::now() < self.end {
            return Ok(next);
        }
        let least = u128::from(self.timeouts.slowest) * self.timeouts.pace.as_millis() / 1000;
        if u128::from(self.bytes) < least {
            let (found_bytes, time) = (self.bytes, self.start.elapsed());
            return Err(Silence::Failed(NetworkFailure::TooSlow { found_bytes, time }));
        }
        *self = Self::new(self.timeouts);
        Ok(next)
    }
}

pub(super) fn broken(client: &Client, url: &str, silence: Silence) -> Result<Ended, ImageError> {
    match silence {
        Silence::Interrupted(interrupted) => Err(interrupted.into()),
        Silence::Failed(failure) => {
            let transient = failure.is_transient();
            let error = client.failed(url, failure);
            if transient { Ok(Ended::Broken { error, wait: None }) } else { Err(error.into()) }
        }
    }
}

/// Returns the end of an attempt whose answer holds no bytes of the file.
pub(super) fn refused(status: u16, head: &Head, url: &str) -> Result<Ended, ImageError> {
    let retry_after = head.retry_after;
    let error = DownloadError::Status { url: url.to_owned(), status, retry_after };
    match status {
        408 | 429 | 500..=599 => Ok(Ended::Broken { error, wait: retry_after }),
        _ => Err(error.into()),
    }
}

/// Returns the number of bytes that a 200 announces, which must be the pinned one.
fn whole(
    job: &Job,
    answer: &Answer,
    url: &str,
    pinned_bytes: Option<u64>,
) -> Result<Option<u64>, ImageError> {
    let head = &answer.head;
    let (Some(expected), Some(found)) = (pinned_bytes, head.content_length) else {
        return Ok(head.content_length);
    };
    if expected == found {
        return Ok(Some(found));
    }
    let start = match answer.next(&job.context.cancel, Some(Instant::now() + job.timeouts.stall)) {
        Ok(Next::Bytes(bytes)) => bytes,
        _ => Vec::new(),
    };
    let html = head.is_html() || headers::looks_like_html(&start);
    let (url, encoding) = (url.to_owned(), head.content_encoding.clone());
    Err(DownloadError::Length { url, expected, found, html, encoding }.into())
}

/// Returns the total that a 206 names, if the answer continues where the partial ends.
fn fits(
    head: &Head,
    url: &str,
    partial: &Partial,
    pinned_bytes: Option<u64>,
) -> Result<Option<u64>, String> {
    let origin = partial.origin(url);
    let known = pinned_bytes.or(origin.and_then(|origin| origin.total_bytes));
    let total = headers::check_range(head, partial.length(), known)?;
    let before = origin.and_then(|origin| origin.etag.as_ref());
    if let (Some(before), Some(now)) = (before, &head.etag)
        && before != now
    {
        return Err("the file has changed since".to_owned());
    }
    Ok(total.or(known))
}

fn bad_range(url: &str, problem: String) -> DownloadError {
    DownloadError::BadRange { url: url.to_owned(), problem }
}

/// Requests one byte, within the time limit for it, to check that the file is available. A server
/// that asks to come back later is asked twice; one that cannot be reached is not, since the user
/// is waiting.
///
/// # Errors
/// Returns the reason why the file is not available.
pub(super) fn probe(job: &Job, url: &str) -> Result<(), ImageError> {
    let limit = job.timeouts.probe;
    let timeouts = Timeouts {
        connect: limit,
        stall: limit,
        longest_wait: limit,
        attempts: 2,
        ..*job.timeouts
    };
    let client = Client::new(job.context, &timeouts, url)?;
    let mut retries = Retries::new(&timeouts);
    let end = Instant::now() + limit;
    loop {
        let request = Request { url, range: Some("bytes=0-0".to_owned()), if_range: None };
        let ended = match client.get(&request, &job.context.cancel, Some(end)) {
            Ok(answer) if matches!(answer.head.status, 200 | 206) => return Ok(()),
            Ok(answer) => refused(answer.head.status, &answer.head, url)?,
            Err(silence) => broken(&client, url, silence)?,
        };
        let Ended::Broken { error, wait } = ended else {
            return Ok(());
        };
        match retries.next(0, wait) {
            Some(pause) if error.is_status() && Instant::now() + pause < end => {
                super::retry::sleep(job, pause)?
            }
            _ => return Err(error.into()),
        }
    }
}
