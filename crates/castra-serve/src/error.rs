//! Errors of the server, before it serves.

use std::io;
use std::path::PathBuf;

use castra_engine::error::{Explain, Kind};

/// Error that keeps the server from serving.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory of the sandboxes cannot be used.
    #[error("cannot use {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The token cannot be read or written.
    #[error("cannot use the token in {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Another server has these sandboxes.
    #[error("another castra already serves the sandboxes in {}", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The server cannot listen at its address.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address.
        address: String,
        /// The reason.
        source: io::Error,
    },
    /// The template of sandboxes is unknown.
    #[error("the template {name} was not found; there are {names}")]
    Template {
        /// The name.
        name: String,
        /// Names of known ones.
        names: String,
    },
    /// The runtime cannot be started.
    #[error("cannot start the server")]
    Runtime(#[source] io::Error),
}

impl Explain for ServeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Busy { .. } => Kind::Busy,
            Self::Template { .. } => Kind::NotFound,
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => Kind::Busy,
            Self::Listen { .. } => Kind::Unavailable,
            Self::Directory { source, .. } | Self::Token { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Kind::Permission,
                _ => Kind::Io,
            },
            Self::Runtime(_) => Kind::Io,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => Some("Stop it, or choose another --state directory.".to_owned()),
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("--listen chooses another address; port 0 is any that is free.".to_owned())
            }
            Self::Token { path, .. } => Some(format!(
                "Remove {} to get another token; clients with the old one are refused then.",
                path.display()
            )),
            Self::Listen { .. }
            | Self::Directory { .. }
            | Self::Template { .. }
            | Self::Runtime(_) => None,
        }
    }
}
