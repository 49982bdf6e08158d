//! Agent forwarding (`ssh -A`): a socket in the guest whose connections lead to the client's
//! authentication agent.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use castra_flow::Flow;
use russh::server::Handle;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::ACCEPT_PAUSE;
use crate::users::User;

/// Directory that contains the sockets' own directories, as with OpenSSH.
const PARENT: &str = "/tmp";

/// A socket for the programs of one connection. Dropping it removes it.
pub(super) struct AuthAgentSocket {
    path: PathBuf,
    user: Arc<User>,
    task: JoinHandle<()>,
}

impl AuthAgentSocket {
    /// Listens on a new socket that only this user and root can reach.
    ///
    /// # Errors
    /// Those of making a directory and a socket in `/tmp`.
    pub(super) async fn listen(user: Arc<User>, handle: Handle, flow: Flow) -> io::Result<Self> {
        let (path, listener) = Arc::clone(&user).run_in_thread(bind).await?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let task = tokio::spawn(accept(listener, handle, flow));
        Ok(Self { path, user, task })
    }

    /// Returns the value for `SSH_AUTH_SOCK`.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AuthAgentSocket {
    fn drop(&mut self) {
        self.task.abort();
        let (path, user) = (std::mem::take(&mut self.path), Arc::clone(&self.user));
        // With the user's rights: the user may have put anything in the directory's place. Nothing
        // waits for it, and what cannot be removed stays, as any file in /tmp.
        let _ = std::thread::Builder::new().name("castra-socket".into()).spawn(move || {
            if user.act_in_thread().is_ok() {
                let _ = fs::remove_file(&path);
                let _ = path.parent().map(fs::remove_dir);
            }
        });
    }
}

/// Creates a socket in a new directory.
fn bind() -> io::Result<(PathBuf, std::os::unix::net::UnixListener)> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let name = format!("castra-ssh-{:016x}", u64::from_ne_bytes(random));
    let directory = Path::new(PARENT).join(name);
    fs::DirBuilder::new().mode(0o700).create(&directory)?;
    let path = directory.join("agent");
    match std::os::unix::net::UnixListener::bind(&path) {
        Ok(listener) => Ok((path, listener)),
        Err(error) => {
            let _ = fs::remove_dir(&directory);
            Err(error)
        }
    }
}

async fn accept(listener: UnixListener, handle: Handle, flow: Flow) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (handle, flow) = (handle.clone(), flow.clone());
        tokio::spawn(async move {
            // If the client refuses, the connection is closed.
            if let Ok(channel) = handle.channel_open_agent().await {
                let (incoming, outgoing) = castra_flow::split_server(channel, &flow, handle);
                castra_flow::relay(incoming, outgoing, stream, None).await;
            }
        });
    }
}
