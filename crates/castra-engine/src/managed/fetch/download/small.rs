//! Small files of which nothing is known before, such as checksum files. They are kept in memory.

use super::attempt::{Ended, Pace, broken, refused};
use super::error::DownloadError;
use super::headers;
use super::http::{Answer, Client, Next, Request, Silence};
use super::retry::{self, Retries};
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::size::ByteSize;

/// Outcome of one request.
enum Outcome<T> {
    Done(T),
    Ended(Ended),
}

/// Fetches a file of at most `limit` bytes. Mirrors are not asked: only the publisher can say what
/// is newest.
///
/// # Errors
/// Returns the last failure, and [`DownloadError::Endless`] for a longer file.
pub(crate) fn fetch_small(job: &Job, url: &str, limit: usize) -> Result<Vec<u8>, ImageError> {
    until_done(job, url, None, |client, answer| match answer.head.status {
        200 => match body(job, &answer, limit) {
            Ok(Some(bytes)) => Ok(Outcome::Done(bytes)),
            Ok(None) => {
                let (url, limit) = (url.to_owned(), ByteSize(limit as u64));
                Err(DownloadError::Endless { url, limit }.into())
            }
            Err(silence) => broken(client, url, silence).map(Outcome::Ended),
        },
        status => refused(status, &answer.head, url).map(Outcome::Ended),
    })
}

/// Returns the length of the file at an address, if the server names it.
///
/// # Errors
/// Returns the reason why the file is not available.
pub(crate) fn length_of(job: &Job, url: &str) -> Result<Option<u64>, ImageError> {
    let first_byte = Some("bytes=0-0".to_owned());
    until_done(job, url, first_byte, |_, answer| match answer.head.status {
        200 => Ok(Outcome::Done(answer.head.content_length)),
        206 => Ok(Outcome::Done(headers::check_range(&answer.head, 0, None).unwrap_or(None))),
        status => refused(status, &answer.head, url).map(Outcome::Ended),
    })
}

/// Makes a request, and repeats it as long as that makes sense.
fn until_done<T>(
    job: &Job,
    url: &str,
    range: Option<String>,
    read: impl Fn(&Client, Answer) -> Result<Outcome<T>, ImageError>,
) -> Result<T, ImageError> {
    if job.context.offline {
        return Err(ImageError::Offline { what: url.to_owned() });
    }
    let client = Client::new(job.context, job.timeouts, url)?;
    let mut retries = Retries::new(job.timeouts);
    loop {
        let request = Request { url, range: range.clone(), if_range: None };
        let outcome = match client.get(&request, &job.context.cancel, None) {
            Ok(answer) => read(&client, answer)?,
            Err(silence) => Outcome::Ended(broken(&client, url, silence)?),
        };
        let (error, wait) = match outcome {
            Outcome::Done(done) => return Ok(done),
            Outcome::Ended(Ended::Broken { error, wait }) => (error, wait),
            Outcome::Ended(Ended::Unfit(error)) => return Err(error.into()),
            Outcome::Ended(Ended::Whole) => continue,
        };
        match retries.next(0, wait) {
            Some(pause) => retry::sleep(job, pause)?,
            None => return Err(error.into()),
        }
    }
}

/// Reads a body; `None` if it is longer than `limit` bytes.
fn body(job: &Job, answer: &Answer, limit: usize) -> Result<Option<Vec<u8>>, Silence> {
    let mut pace = Pace::new(job.timeouts);
    let mut bytes = Vec::new();
    loop {
        let next = answer.next(&job.context.cancel, Some(pace.end))?;
        match pace.check(next)? {
            Next::Bytes(more) if bytes.len() + more.len() > limit => return Ok(None),
            Next::Bytes(more) => bytes.extend_from_slice(&more),
            Next::Nothing => {}
            Next::End => return Ok(Some(bytes)),
        }
    }
}
