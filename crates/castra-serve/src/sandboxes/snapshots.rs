//! Snapshots of sandboxes.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{SandboxError, Sandboxes, SnapshotRecord, now_ms, remove_vm};
use crate::random;

impl Sandboxes {
    /// Returns a snapshot by its identifier, or by one of its names.
    pub(crate) fn snapshot(&self, name: &str) -> Option<SnapshotRecord> {
        let all = self.lock();
        let named = |snapshot: &&SnapshotRecord| snapshot.names.iter().any(|own| own == name);
        all.snapshots.get(name).or_else(|| all.snapshots.values().find(named)).cloned()
    }

    /// Returns all snapshots, in no order.
    pub(crate) fn snapshots(&self) -> Vec<SnapshotRecord> {
        self.lock().snapshots.values().cloned().collect()
    }

    /// Keeps the present state of a sandbox, which continues.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], a name that is taken, and if the memory cannot be saved.
    pub(crate) async fn make_snapshot(
        self: &Arc<Self>,
        id: &str,
        name: Option<String>,
    ) -> Result<SnapshotRecord, SandboxError> {
        let sandbox = self.get(id)?;
        let _lifecycle = sandbox.lifecycle.lock().await;
        if let Some(name) = &name
            && self.templates().image(name).is_some()
        {
            return Err(SandboxError::NameTaken(name.clone()));
        }
        let source = sandbox.record();
        let snapshot = SnapshotRecord {
            id: random::name()?,
            names: name.into_iter().collect(),
            source: source.id,
            template: source.template,
            shape: source.shape,
            environment: source.environment,
            made_unix_ms: now_ms(),
        };
        self.snapshot_records.save(&snapshot)?;
        if source.paused.is_none() {
            sandbox.end_session().await;
        }
        let (this, vm) = (Arc::clone(self), sandbox.vm.clone());
        let cloning = spawn_blocking(move || match vm.clone_as(&snapshot.id) {
            Ok(_) => {
                for name in &snapshot.names {
                    this.take_name(name)?;
                }
                this.lock().snapshots.insert(snapshot.id.clone(), snapshot.clone());
                Ok(snapshot)
            }
            Err(error) => {
                this.snapshot_records.remove(&snapshot.id);
                Err(SandboxError::from(error))
            }
        });
        cloning.await.map_err(|_| SandboxError::Ending)?
    }

    /// Takes a name from the snapshot that has it, for a newer one.
    fn take_name(&self, name: &str) -> Result<(), SandboxError> {
        let Some(mut older) = self.snapshot(name) else { return Ok(()) };
        older.names.retain(|own| own != name);
        self.snapshot_records.save(&older)?;
        self.lock().snapshots.insert(older.id.clone(), older);
        Ok(())
    }

    /// Removes a snapshot. Sandboxes that were made from it stay.
    ///
    /// # Errors
    /// [`SandboxError::NoSnapshot`].
    pub(crate) async fn remove_snapshot(self: &Arc<Self>, name: &str) -> Result<(), SandboxError> {
        let missing = || SandboxError::NoSnapshot(name.to_owned());
        let snapshot = self.snapshot(name).ok_or_else(missing)?;
        let vm = self.vm(&snapshot.id, &snapshot.shape)?;
        if self.lock().snapshots.remove(&snapshot.id).is_none() {
            return Err(missing());
        }
        let this = Arc::clone(self);
        let removing = spawn_blocking(move || {
            remove_vm(&vm);
            this.snapshot_records.remove(&snapshot.id);
        });
        removing.await.map_err(|_| SandboxError::Ending)
    }
}
