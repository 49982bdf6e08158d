//! The Connect protocol (connectrpc.com/docs/protocol): calls over HTTP, in JSON or protobuf.
//!
//! A call without a stream is one message each way. A stream is a sequence of envelopes, of which
//! the last of an answer holds the error, if there is one:
//!
//! ```text
//! 0      1          5            5 + n
//! │ flags │ length n │ message    │
//! ```

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::enter::{Call, enter};
use super::error::{Code, ConnectError};
use super::messages::Message;
use crate::server::Shared;

/// Flag of the last envelope of an answer, and of one that is compressed.
const END: u8 = 2;
const COMPRESSED: u8 = 1;

/// Size of an envelope's head, in bytes.
const HEAD_BYTES: usize = 5;

/// Longest message of a client, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Header with the time for a call, in milliseconds.
const TIMEOUT: &str = "connect-timeout-ms";

/// Encoding of a call's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Json,
    Proto,
}

impl Codec {
    /// Returns the codec of a call, by its content type, if it has one; `prefix` is that of its
    /// kind.
    fn of(headers: &HeaderMap, prefix: &str) -> Option<Self> {
        let named = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let named = named.map(|kind| kind.split(';').next().unwrap_or_default().trim());
        match named.and_then(|kind| kind.strip_prefix("application/")?.strip_prefix(prefix)) {
            Some("json") => Some(Self::Json),
            Some("proto") => Some(Self::Proto),
            _ => None,
        }
    }

    fn content_type(self, is_stream: bool) -> HeaderValue {
        HeaderValue::from_static(match (self, is_stream) {
            (Self::Json, false) => "application/json",
            (Self::Proto, false) => "application/proto",
            (Self::Json, true) => "application/connect+json",
            (Self::Proto, true) => "application/connect+proto",
        })
    }

    fn decode<M: Message>(self, bytes: &[u8]) -> Result<M, ConnectError> {
        let bad = |error: String| ConnectError::invalid(format!("bad message: {error}"));
        match self {
            Self::Json if bytes.is_empty() => Ok(M::default()),
            Self::Json => serde_json::from_slice(bytes).map_err(|error| bad(error.to_string())),
            Self::Proto => M::decode(bytes).map_err(|error| bad(error.to_string())),
        }
    }

    fn encode<M: Message>(self, message: &M) -> Bytes {
        match self {
            Self::Json => serde_json::to_vec(message).unwrap_or_default().into(),
            Self::Proto => message.encode_to_vec().into(),
        }
    }
}

fn unknown_codec() -> Response {
    StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response()
}

/// Answers a call with one message each way.
pub(super) async fn unary<M: Message, R: Message>(
    shared: Shared,
    request: Request,
    handle: impl AsyncFnOnce(Call, M) -> Result<R, ConnectError>,
) -> Response {
    let Some(codec) = Codec::of(request.headers(), "") else { return unknown_codec() };
    let (call, body) = match enter_call(&shared, request).await {
        Ok(entered) => entered,
        Err(refused) => return refused,
    };
    let deadline = call.deadline;
    let answered = async {
        let body = to_bytes(body, MAX_MESSAGE_BYTES).await;
        let body = body.map_err(|error| ConnectError::invalid(error.to_string()))?;
        handle(call, codec.decode(&body)?).await
    };
    match within(deadline, answered).await {
        Ok(answer) => {
            let kind = codec.content_type(false);
            ([(header::CONTENT_TYPE, kind)], codec.encode(&answer)).into_response()
        }
        Err(error) => error.into_response(),
    }
}

/// Answers a call with one message, and a stream of answers.
pub(super) async fn server_stream<M: Message, R: Message, S>(
    shared: Shared,
    request: Request,
    handle: impl AsyncFnOnce(Call, M) -> Result<S, ConnectError>,
) -> Response
where
    S: Stream<Item = Result<R, ConnectError>> + Send + 'static,
{
    let Some(codec) = Codec::of(request.headers(), "connect+") else { return unknown_codec() };
    let (call, body) = match enter_call(&shared, request).await {
        Ok(entered) => entered,
        Err(refused) => return refused,
    };
    let started = async {
        let mut messages = Envelopes::new(body);
        let message = messages.next_message().await?;
        let message = message.ok_or_else(|| ConnectError::invalid("there is no message"))?;
        handle(call, codec.decode(&message)?).await
    };
    match started.await {
        Ok(answers) => {
            let envelopes = answers.map(move |answer| match answer {
                Ok(answer) => (envelope(0, &codec.encode(&answer)), None),
                Err(error) => (Bytes::new(), Some(error)),
            });
            // Nothing follows an error.
            let sent = futures_util::stream::unfold(
                (Box::pin(envelopes), false),
                |(mut envelopes, has_ended)| async move {
                    if has_ended {
                        return None;
                    }
                    match envelopes.next().await {
                        Some((envelope, None)) => Some((envelope, (envelopes, false))),
                        Some((_, Some(error))) => Some((end(Some(&error)), (envelopes, true))),
                        None => Some((end(None), (envelopes, true))),
                    }
                },
            );
            streamed(codec, Body::from_stream(sent.map(Ok::<_, Infallible>)))
        }
        Err(error) => streamed(codec, Body::from(end(Some(&error)))),
    }
}

/// Answers a stream of messages by one message.
pub(super) async fn client_stream<M: Message, R: Message>(
    shared: Shared,
    request: Request,
    handle: impl AsyncFnOnce(Call, Messages<M>) -> Result<R, ConnectError>,
) -> Response {
    let Some(codec) = Codec::of(request.headers(), "connect+") else { return unknown_codec() };
    let (call, body) = match enter_call(&shared, request).await {
        Ok(entered) => entered,
        Err(refused) => return refused,
    };
    let deadline = call.deadline;
    let messages =
        Messages { envelopes: Envelopes::new(body), codec, kind: std::marker::PhantomData };
    let body = match within(deadline, handle(call, messages)).await {
        Ok(answer) => {
            let mut body = BytesMut::from(envelope(0, &codec.encode(&answer)));
            body.extend_from_slice(&end(None));
            body.freeze()
        }
        Err(error) => end(Some(&error)),
    };
    streamed(codec, Body::from(body))
}

/// Messages of a client's stream.
pub(super) struct Messages<M> {
    envelopes: Envelopes,
    codec: Codec,
    kind: std::marker::PhantomData<fn() -> M>,
}

impl<M: Message> Messages<M> {
    /// Waits for the next message. Returns `None` at the end.
    ///
    /// # Errors
    /// The client sent what is none, or is gone.
    pub(super) async fn next(&mut self) -> Result<Option<M>, ConnectError> {
        match self.envelopes.next_message().await? {
            Some(bytes) => Ok(Some(self.codec.decode(&bytes)?)),
            None => Ok(None),
        }
    }
}

async fn enter_call(shared: &Shared, request: Request) -> Result<(Call, Body), Response> {
    let deadline = deadline(request.headers()).map_err(|error| error.into_response())?;
    let entered = enter(shared, request.headers()).await?;
    Ok((entered.call(deadline), request.into_body()))
}

fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, ConnectError> {
    let Some(named) = headers.get(TIMEOUT) else { return Ok(None) };
    let ms = named.to_str().ok().and_then(|text| text.parse().ok());
    let ms = ms.ok_or_else(|| ConnectError::invalid(format!("bad {TIMEOUT}")))?;
    Ok(Instant::now().checked_add(Duration::from_millis(ms)))
}

async fn within<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    match deadline {
        None => work.await,
        Some(deadline) => match tokio::time::timeout_at(deadline, work).await {
            Ok(done) => done,
            Err(_) => Err(out_of_time()),
        },
    }
}

/// Returns the error of a call whose time is over.
pub(super) fn out_of_time() -> ConnectError {
    ConnectError::new(Code::DeadlineExceeded, "the time for the call is over")
}

fn streamed(codec: Codec, body: Body) -> Response {
    ([(header::CONTENT_TYPE, codec.content_type(true))], body).into_response()
}

fn envelope(flags: u8, message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + message.len());
    bytes.put_u8(flags);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

fn end(error: Option<&ConnectError>) -> Bytes {
    let message = error.map_or_else(|| json!({}), |error| json!({ "error": error.json() }));
    envelope(END, message.to_string().as_bytes())
}

/// Envelopes of a client.
struct Envelopes {
    data: axum::body::BodyDataStream,
    buffer: BytesMut,
}

impl Envelopes {
    fn new(body: Body) -> Self {
        Self { data: body.into_data_stream(), buffer: BytesMut::new() }
    }

    async fn next_message(&mut self) -> Result<Option<Bytes>, ConnectError> {
        loop {
            if let Some([flags, length @ ..]) = self.buffer.first_chunk::<HEAD_BYTES>() {
                let length = u32::from_be_bytes(*length) as usize;
                if flags & COMPRESSED != 0 {
                    let message = "compressed messages are not supported";
                    return Err(ConnectError::new(Code::Unimplemented, message));
                }
                if length > MAX_MESSAGE_BYTES {
                    let message = format!("a message has at most {MAX_MESSAGE_BYTES} bytes");
                    return Err(ConnectError::new(Code::ResourceExhausted, message));
                }
                if self.buffer.len() >= HEAD_BYTES + length {
                    let is_end = flags & END != 0;
                    self.buffer.advance(HEAD_BYTES);
                    let message = self.buffer.split_to(length).freeze();
                    return Ok((!is_end).then_some(message));
                }
            }
            match self.data.next().await {
                Some(Ok(data)) => self.buffer.extend_from_slice(&data),
                Some(Err(error)) => return Err(ConnectError::invalid(error.to_string())),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ConnectError::invalid("the message is cut")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn envelopes_arrive_in_pieces_of_any_size() {
        let bytes = [envelope(0, b"one"), envelope(0, b""), envelope(END, b"{}")].concat();
        for size in 1..=bytes.len() {
            let pieces: Vec<_> = bytes
                .chunks(size)
                .map(|it| Ok::<_, Infallible>(Bytes::copy_from_slice(it)))
                .collect();
            let mut envelopes =
                Envelopes::new(Body::from_stream(futures_util::stream::iter(pieces)));
            assert_eq!(envelopes.next_message().await, Ok(Some(Bytes::from_static(b"one"))));
            assert_eq!(envelopes.next_message().await, Ok(Some(Bytes::new())));
            assert_eq!(envelopes.next_message().await, Ok(None));
        }
        let mut cut = Envelopes::new(Body::from(envelope(0, b"message").slice(..6)));
        assert!(cut.next_message().await.is_err());
        let mut giant = Envelopes::new(Body::from(vec![0, 255, 255, 255, 255]));
        let error = giant.next_message().await.expect_err("is refused");
        assert_eq!(error.code, Code::ResourceExhausted);
    }
}
