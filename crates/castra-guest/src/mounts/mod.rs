//! Directories of the host, which the guest's kernel reaches by FUSE.
//!
//! The agent opens `/dev/fuse`, mounts, and relays raw messages between the kernel and a process of
//! the host over a stream. It knows of FUSE only as much as it takes to end a request whose
//! answerer is gone: a mount outlives its stream, since the programs in it shall continue when the
//! host's next process takes over. That answers a saved and restored guest, too.

mod device;
mod keeper;
mod message;
mod nudger;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use castra_flow::{Incoming, Outgoing, link};
use castra_wire::{MountDecoder, MountMessage};
use tokio::sync::{Mutex, mpsc};

use self::keeper::{Keeper, Place};
use crate::kernel_fs::KernelFs;

pub(crate) use device::load as load_module;

/// Mounts of this guest.
#[derive(Clone)]
pub(crate) struct Mounts {
    kernel_fs: Arc<KernelFs>,
    kept: Arc<Mutex<HashMap<OsString, Kept>>>,
}

/// A mount and the way to its keeper, which has ended once the directory is unmounted.
struct Kept {
    is_read_only: bool,
    sessions: mpsc::UnboundedSender<Session>,
}

/// Stream of a host process that answers a mount's requests.
pub(super) struct Session {
    incoming: Incoming,
    outgoing: Outgoing,
    decoder: MountDecoder,
}

impl Mounts {
    pub(crate) fn new(kernel_fs: Arc<KernelFs>) -> Self {
        Self { kernel_fs, kept: Arc::default() }
    }

    /// Returns the guest's kernel, as everything here reaches it.
    pub(crate) fn kernel_fs(&self) -> &Arc<KernelFs> {
        &self.kernel_fs
    }

    /// Returns `true` for a path at or below the directory of a mount that is there.
    pub(crate) async fn have(&self, path: &OsStr) -> bool {
        let kept = self.kept.lock().await;
        kept.iter()
            .any(|(at, mount)| Path::new(path).starts_with(at) && !mount.sessions.is_closed())
    }

    /// Serves a stream of the host: mounts the directory, or gives the mount that is there already
    /// to the stream's host.
    pub(crate) async fn serve(
        &self,
        path: OsString,
        is_read_only: bool,
        incoming: link::Incoming,
        outgoing: link::Outgoing,
    ) {
        // Fails if the host is gone, as everything below then does.
        let _ = outgoing.opened();
        let (incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
        let mut session = Session { incoming, outgoing, decoder: MountDecoder::default() };
        let mut kept = self.kept.lock().await;
        if let Some(mount) = kept.get(&path).filter(|mount| mount.is_read_only == is_read_only) {
            match mount.sessions.send(session) {
                Ok(()) => return,
                Err(unsent) => session = unsent.0,
            }
        }
        let (kernel_fs, at) = (Arc::clone(&self.kernel_fs), path.clone());
        let mounted = tokio::task::spawn_blocking(move || {
            device::mount(&kernel_fs, Path::new(&at), is_read_only)
        });
        let keeper = match mounted.await.unwrap_or_else(|_| Err("the agent ends".into())) {
            Ok((device, numbers)) => {
                let place = Place { path: path.clone().into(), numbers };
                Keeper::new(device, place, Arc::clone(&self.kernel_fs))
            }
            Err(reason) => Err(reason),
        };
        match keeper {
            Ok((keeper, sessions)) => {
                kept.insert(path, Kept { is_read_only, sessions });
                tokio::spawn(keeper.run(session));
            }
            Err(reason) => {
                let _ = session.outgoing.send(MountMessage::Failed(reason).encode()).await;
            }
        }
    }
}
