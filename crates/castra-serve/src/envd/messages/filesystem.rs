//! Messages of `filesystem.Filesystem`.

use prost::{Enumeration, Message, Oneof};
use serde::{Deserialize, Serialize};

use super::named_enumeration;
use super::process::{Empty, messages};

named_enumeration!(file_type_name, super::FileType);
named_enumeration!(event_type_name, super::EventType);

/// Type of a file, or of the target of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub(crate) enum FileType {
    Unspecified = 0,
    File = 1,
    Directory = 2,
    Symlink = 3,
}

impl FileType {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Unspecified, "FILE_TYPE_UNSPECIFIED"),
        (Self::File, "FILE_TYPE_FILE"),
        (Self::Directory, "FILE_TYPE_DIRECTORY"),
        (Self::Symlink, "FILE_TYPE_SYMLINK"),
    ];

    fn as_str_name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    fn from_str_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// Type of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub(crate) enum EventType {
    Unspecified = 0,
    Create = 1,
    Write = 2,
    Remove = 3,
    Rename = 4,
    Chmod = 5,
}

impl EventType {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Unspecified, "EVENT_TYPE_UNSPECIFIED"),
        (Self::Create, "EVENT_TYPE_CREATE"),
        (Self::Write, "EVENT_TYPE_WRITE"),
        (Self::Remove, "EVENT_TYPE_REMOVE"),
        (Self::Rename, "EVENT_TYPE_RENAME"),
        (Self::Chmod, "EVENT_TYPE_CHMOD"),
    ];

    fn as_str_name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    fn from_str_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// Time of protobuf's `Timestamp`; in JSON, text as RFC 3339 writes it.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Time {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let time = jiff::Timestamp::new(self.seconds, self.nanos).unwrap_or_default();
        to.serialize_str(&time.to_string())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let time: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
    }
}

messages! {
    /// Request about one path.
    PathRequest {
        #[prost(string, tag = "1")]
        path: String,
    }

    /// Answer with one entry, or none.
    EntryResponse {
        #[prost(message, optional, tag = "1")]
        #[serde(skip_serializing_if = "Option::is_none")]
        entry: Option<EntryInfo>,
    }

    MoveRequest {
        #[prost(string, tag = "1")]
        source: String,
        #[prost(string, tag = "2")]
        destination: String,
    }

    EntryInfo {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(int32, tag = "2")]
        #[serde(rename = "type", with = "file_type_name")]
        kind: i32,
        #[prost(string, tag = "3")]
        path: String,
        #[prost(int64, tag = "4")]
        #[serde(with = "super::text_number")]
        size: i64,
        #[prost(uint32, tag = "5")]
        mode: u32,
        #[prost(string, tag = "6")]
        permissions: String,
        #[prost(string, tag = "7")]
        owner: String,
        #[prost(string, tag = "8")]
        group: String,
        #[prost(message, optional, tag = "9")]
        #[serde(skip_serializing_if = "Option::is_none")]
        modified_time: Option<Time>,
        #[prost(string, optional, tag = "10")]
        #[serde(skip_serializing_if = "Option::is_none")]
        symlink_target: Option<String>,
        #[prost(bool, tag = "12")]
        is_symlink: bool,
    }

    ListDirRequest {
        #[prost(string, tag = "1")]
        path: String,
        #[prost(uint32, tag = "2")]
        depth: u32,
    }

    ListDirResponse {
        #[prost(message, repeated, tag = "1")]
        entries: Vec<EntryInfo>,
    }

    /// Request for a watch, polled or not.
    WatchRequest {
        #[prost(string, tag = "1")]
        path: String,
        #[prost(bool, tag = "2")]
        recursive: bool,
        #[prost(bool, tag = "3")]
        include_entry: bool,
        #[prost(bool, tag = "4")]
        allow_network_mounts: bool,
    }

    FilesystemEvent {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(int32, tag = "2")]
        #[serde(rename = "type", with = "event_type_name")]
        kind: i32,
    }

    WatchDirResponse {
        #[prost(oneof = "WatchEvent", tags = "1, 2, 3")]
        #[serde(flatten)]
        event: Option<WatchEvent>,
    }

    CreateWatcherResponse {
        #[prost(string, tag = "1")]
        watcher_id: String,
    }

    WatcherRequest {
        #[prost(string, tag = "1")]
        watcher_id: String,
    }

    WatcherEventsResponse {
        #[prost(message, repeated, tag = "1")]
        events: Vec<FilesystemEvent>,
    }
}

#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum WatchEvent {
    #[prost(message, tag = "1")]
    Start(Empty),
    #[prost(message, tag = "2")]
    Filesystem(FilesystemEvent),
    #[prost(message, tag = "3")]
    Keepalive(Empty),
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_has_the_form_of_protobuf_in_json() {
        let entry = EntryInfo {
            name: "file".into(),
            kind: FileType::File as i32,
            path: "/tmp/file".into(),
            size: 1 << 40,
            modified_time: Some(Time { seconds: 1, nanos: 0 }),
            ..EntryInfo::default()
        };
        let form = serde_json::to_value(&entry).expect("encodes");
        assert_eq!(form["type"], "FILE_TYPE_FILE");
        assert_eq!(form["size"], "1099511627776");
        assert_eq!(form["modifiedTime"], "1970-01-01T00:00:01Z");
        assert_eq!(form.get("symlinkTarget"), None);
        assert_eq!(serde_json::from_value::<EntryInfo>(form).expect("decodes"), entry);
        let event = FilesystemEvent { name: "a".into(), kind: EventType::Write as i32 };
        let event = WatchDirResponse { event: Some(WatchEvent::Filesystem(event)) };
        assert_eq!(
            serde_json::to_value(event).expect("encodes"),
            json!({ "filesystem": { "name": "a", "type": "EVENT_TYPE_WRITE" } })
        );
    }
}
