//! Messages of `process.Process`.

use std::collections::BTreeMap;

use prost::{Enumeration, Message, Oneof};
use serde::{Deserialize, Serialize};

use super::named_enumeration;

/// Defines messages, whose fields may all be missing in JSON.
macro_rules! messages {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            pub(crate) struct $name {
                $($(#[$field_meta])* pub(crate) $field: $kind,)*
            }
        )*
    };
}
pub(crate) use messages;

named_enumeration!(signal_name, super::Signal);

/// Signal that a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
#[allow(clippy::enum_variant_names, reason = "the names are the protocol's")]
pub(crate) enum Signal {
    Unspecified = 0,
    Sigkill = 9,
    Sigterm = 15,
}

impl Signal {
    fn as_str_name(self) -> &'static str {
        match self {
            Self::Unspecified => "SIGNAL_UNSPECIFIED",
            Self::Sigkill => "SIGNAL_SIGKILL",
            Self::Sigterm => "SIGNAL_SIGTERM",
        }
    }

    fn from_str_name(name: &str) -> Option<Self> {
        [Self::Unspecified, Self::Sigkill, Self::Sigterm]
            .into_iter()
            .find(|signal| signal.as_str_name() == name)
    }
}

messages! {
    PtySize {
        #[prost(uint32, tag = "1")]
        cols: u32,
        #[prost(uint32, tag = "2")]
        rows: u32,
    }

    Pty {
        #[prost(message, optional, tag = "1")]
        size: Option<PtySize>,
    }

    ProcessConfig {
        #[prost(string, tag = "1")]
        cmd: String,
        #[prost(string, repeated, tag = "2")]
        args: Vec<String>,
        #[prost(btree_map = "string, string", tag = "3")]
        envs: BTreeMap<String, String>,
        #[prost(string, optional, tag = "4")]
        #[serde(skip_serializing_if = "Option::is_none")]
        cwd: Option<String>,
    }

    ListRequest {}

    ProcessInfo {
        #[prost(message, optional, tag = "1")]
        config: Option<ProcessConfig>,
        #[prost(uint32, tag = "2")]
        pid: u32,
        #[prost(string, optional, tag = "3")]
        #[serde(skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
    }

    ListResponse {
        #[prost(message, repeated, tag = "1")]
        processes: Vec<ProcessInfo>,
    }

    StartRequest {
        #[prost(message, optional, tag = "1")]
        process: Option<ProcessConfig>,
        #[prost(message, optional, tag = "2")]
        pty: Option<Pty>,
        #[prost(string, optional, tag = "3")]
        tag: Option<String>,
        #[prost(bool, optional, tag = "4")]
        stdin: Option<bool>,
    }

    ConnectRequest {
        #[prost(message, optional, tag = "1")]
        process: Option<ProcessSelector>,
    }

    UpdateRequest {
        #[prost(message, optional, tag = "1")]
        process: Option<ProcessSelector>,
        #[prost(message, optional, tag = "2")]
        pty: Option<Pty>,
    }

    SendInputRequest {
        #[prost(message, optional, tag = "1")]
        process: Option<ProcessSelector>,
        #[prost(message, optional, tag = "2")]
        input: Option<ProcessInput>,
    }

    SendSignalRequest {
        #[prost(message, optional, tag = "1")]
        process: Option<ProcessSelector>,
        #[prost(int32, tag = "2")]
        #[serde(with = "signal_name")]
        signal: i32,
    }

    CloseStdinRequest {
        #[prost(message, optional, tag = "1")]
        process: Option<ProcessSelector>,
    }

    /// Answer without content.
    Empty {}

    /// Event of a start and of a connection, whose answers have the same form.
    StartResponse {
        #[prost(message, optional, tag = "1")]
        event: Option<ProcessEvent>,
    }

    ProcessEvent {
        #[prost(oneof = "Event", tags = "1, 2, 3, 4")]
        #[serde(flatten)]
        event: Option<Event>,
    }

    StartEvent {
        #[prost(uint32, tag = "1")]
        pid: u32,
    }

    DataEvent {
        #[prost(oneof = "Output", tags = "1, 2, 3")]
        #[serde(flatten)]
        output: Option<Output>,
    }

    EndEvent {
        #[prost(sint32, tag = "1")]
        exit_code: i32,
        #[prost(bool, tag = "2")]
        exited: bool,
        #[prost(string, tag = "3")]
        status: String,
        #[prost(string, optional, tag = "4")]
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    }

    ProcessInput {
        #[prost(oneof = "Input", tags = "1, 2")]
        #[serde(flatten)]
        input: Option<Input>,
    }

    StreamInputRequest {
        #[prost(oneof = "InputEvent", tags = "1, 2, 3")]
        #[serde(flatten)]
        event: Option<InputEvent>,
    }

    InputStart {
        #[prost(message, optional, tag = "1")]
        process: Option<ProcessSelector>,
    }

    InputData {
        #[prost(message, optional, tag = "2")]
        input: Option<ProcessInput>,
    }

    ProcessSelector {
        #[prost(oneof = "Selector", tags = "1, 2")]
        #[serde(flatten)]
        selector: Option<Selector>,
    }
}

#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Event {
    #[prost(message, tag = "1")]
    Start(StartEvent),
    #[prost(message, tag = "2")]
    Data(DataEvent),
    #[prost(message, tag = "3")]
    End(EndEvent),
    #[prost(message, tag = "4")]
    Keepalive(Empty),
}

#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Output {
    #[prost(bytes, tag = "1")]
    Stdout(#[serde(with = "super::base64_bytes")] Vec<u8>),
    #[prost(bytes, tag = "2")]
    Stderr(#[serde(with = "super::base64_bytes")] Vec<u8>),
    #[prost(bytes, tag = "3")]
    Pty(#[serde(with = "super::base64_bytes")] Vec<u8>),
}

#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Input {
    #[prost(bytes, tag = "1")]
    Stdin(#[serde(with = "super::base64_bytes")] Vec<u8>),
    #[prost(bytes, tag = "2")]
    Pty(#[serde(with = "super::base64_bytes")] Vec<u8>),
}

impl Input {
    /// Returns the bytes.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let (Self::Stdin(bytes) | Self::Pty(bytes)) = self;
        bytes
    }
}

#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum InputEvent {
    #[prost(message, tag = "1")]
    Start(InputStart),
    #[prost(message, tag = "2")]
    Data(InputData),
    #[prost(message, tag = "3")]
    Keepalive(Empty),
}

#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Selector {
    #[prost(uint32, tag = "1")]
    Pid(u32),
    #[prost(string, tag = "2")]
    Tag(String),
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The forms are what the Python SDK writes and reads.
    #[test]
    fn messages_have_the_form_of_protobuf_in_json() {
        let event = |event| StartResponse { event: Some(ProcessEvent { event: Some(event) }) };
        let data = DataEvent { output: Some(Output::Stdout(b"hi\n".to_vec())) };
        let end =
            EndEvent { exit_code: -1, exited: false, status: "signal: killed".into(), error: None };
        for (message, form) in [
            (
                event(Event::Start(StartEvent { pid: 7 })),
                json!({ "event": { "start": { "pid": 7 } } }),
            ),
            (event(Event::Data(data)), json!({ "event": { "data": { "stdout": "aGkK" } } })),
            (
                event(Event::End(end)),
                json!({ "event": { "end": {
                    "exitCode": -1, "exited": false, "status": "signal: killed"
                } } }),
            ),
        ] {
            assert_eq!(serde_json::to_value(&message).expect("encodes"), form);
            assert_eq!(serde_json::from_value::<StartResponse>(form).expect("decodes"), message);
            let bytes = message.encode_to_vec();
            assert_eq!(StartResponse::decode(&*bytes).expect("decodes"), message);
        }
        let form = json!({ "process": { "pid": 3 }, "signal": "SIGNAL_SIGKILL" });
        let request: SendSignalRequest = serde_json::from_value(form).expect("decodes");
        assert_eq!(request.signal, Signal::Sigkill as i32);
        assert_eq!(request.process.and_then(|process| process.selector), Some(Selector::Pid(3)));
        let form = json!({ "process": { "cmd": "sh", "unknown": 1 }, "pty": { "size": {} } });
        let request: StartRequest = serde_json::from_value(form).expect("decodes");
        assert!(request.pty.is_some() && request.stdin.is_none());
    }
}
