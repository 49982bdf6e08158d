//! Sandboxes that a server leaves: throw-away ones are removed, and the others are paused.

use std::collections::BTreeMap;
use std::sync::Arc;

use castra_engine::Castra;
use tokio::task::JoinSet;

use crate::directory::StateDirectory;
use crate::error::ServeError;
use crate::sandboxes::{Paused, SandboxOptions, SandboxRecord, Sandboxes};

/// Name in the metadata of sandboxes for one command.
const THROWAWAY: &str = "castra.throwaway";

/// Returns the metadata of a throw-away sandbox.
pub(super) fn throwaway() -> BTreeMap<String, String> {
    BTreeMap::from([(THROWAWAY.to_owned(), "true".to_owned())])
}

/// Returns `true` for a sandbox that ends with its command.
pub(super) fn is_throwaway(record: &SandboxRecord) -> bool {
    record.metadata.contains_key(THROWAWAY)
}

/// Removes the throw-away sandboxes in a directory, and pauses the others. Blocks, and needs no
/// runtime.
///
/// # Errors
/// The directory cannot be used.
pub(super) fn settle(
    castra: &Castra,
    directory: &StateDirectory,
    options: &SandboxOptions,
) -> Result<(), ServeError> {
    let sandboxes = Arc::new(Sandboxes::open(castra, directory.path(), options)?);
    sandboxes.recover().map_err(|error| directory.failed(error))?;
    let all = sandboxes.list();
    let unsettled = |record: &SandboxRecord| is_throwaway(record) || record.paused.is_none();
    if !all.iter().any(unsettled) {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ServeError::Runtime)?.block_on(async {
        let mut settling = JoinSet::new();
        for record in all.into_iter().filter(unsettled) {
            let sandboxes = Arc::clone(&sandboxes);
            settling.spawn(async move {
                let settled = match is_throwaway(&record) {
                    true => sandboxes.kill(&record.id).await,
                    false => sandboxes.pause(&record.id, Paused::WithMemory).await,
                };
                if let Err(error) = settled {
                    tracing::warn!("sandbox {}, which its server leaves: {error}", record.id);
                }
            });
        }
        settling.join_all().await;
    });
    Ok(())
}
