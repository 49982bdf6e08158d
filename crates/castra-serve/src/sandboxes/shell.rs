//! The shell of a guest. Clients of the E2B API call bash by its path, which not each guest has.

use bytes::Bytes;
use castra_engine::session::GuestSession;
use castra_engine::session::sftp::Request;

/// Shell that the SDKs call.
pub(crate) const BASH: &str = "/bin/bash";

/// Shell that each guest has.
const SHELL: &str = "/bin/sh";

/// Returns the shell that clients get for bash.
pub(super) async fn find_shell(session: &GuestSession) -> &'static str {
    let path = Bytes::from_static(BASH.as_bytes());
    match session.files("root").await {
        Ok(files) if files.attributes(Request::Stat { path }).await.is_err() => SHELL,
        _ => BASH,
    }
}
