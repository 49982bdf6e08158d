//! Bodies of requests that are refused. A connection whose request was answered with its body
//! unread is closed, and a client that sends the next one on it at that moment loses it. So what is
//! left of a body is read before the answer is sent.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody as _};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::time::timeout;

/// Most of a body that is read for nothing, in bytes. What is longer is a file.
const MAX_REST_BYTES: usize = 1 << 20;

/// Time for the rest of a body. A client that waits for the answer first sends no more.
const REST_LIMIT: Duration = Duration::from_secs(1);

/// A body that its handler reads, and whose rest comes back when the handler drops it.
struct Lent(Arc<Mutex<BodyDataStream>>);

impl Stream for Lent {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).poll_next_unpin(context)
    }
}

/// Reads what its handler has left of a request's body before the answer is sent.
pub(crate) async fn read_rest(request: Request, next: Next) -> Response {
    // Passed on as it is: what is sent to a service in a sandbox has no body then, either.
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body.into_data_stream()));
    let lent = Body::from_stream(Lent(Arc::clone(&body)));
    let response = next.run(Request::from_parts(head, lent)).await;
    // Otherwise the answer is a stream whose handler still reads.
    if let Ok(rest) = Arc::try_unwrap(body) {
        let rest = rest.into_inner().unwrap_or_else(PoisonError::into_inner);
        let _ = timeout(REST_LIMIT, drain(rest)).await;
    }
    response
}

async fn drain(mut rest: BodyDataStream) {
    let mut read = 0;
    while read <= MAX_REST_BYTES
        && let Some(Ok(bytes)) = rest.next().await
    {
        read += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rest_of_a_mebibyte_is_read_and_no_more() {
        for (chunks, left) in [(0, 0), (1, 0), (16, 0), (100, 83)] {
            let sent = vec![Bytes::from(vec![0; 1 << 16]); chunks].into_iter();
            let remaining = Arc::new(Mutex::new(sent));
            let source = Arc::clone(&remaining);
            let next = move || source.lock().expect("no panic").next().map(Ok::<_, axum::Error>);
            let stream = futures_util::stream::poll_fn(move |_| Poll::Ready(next()));
            drain(Body::from_stream(stream).into_data_stream()).await;
            assert_eq!(remaining.lock().expect("no panic").len(), left);
        }
    }
}
