//! Recovery of what an earlier server has left: sandboxes that still run, and halves of those that
//! it was just making or ending.

use std::collections::BTreeSet;

use castra_engine::status::VmState;

use super::{
    OnTimeout, Paused, Sandbox, SandboxError, SandboxRecord, Sandboxes, now_ms, remove_vm,
};

impl Sandboxes {
    /// Takes over the sandboxes and snapshots of an earlier server. Blocks.
    ///
    /// # Errors
    /// The directory of the VMs cannot be used.
    pub(crate) fn recover(&self) -> Result<(), SandboxError> {
        let mut known = BTreeSet::new();
        for snapshot in self.snapshot_records.load() {
            let vm = self.vm(&snapshot.id, &snapshot.shape)?;
            known.insert(snapshot.id.clone());
            let state = vm.status()?.map(|status| status.state);
            if state == Some(VmState::Suspended) || state == Some(VmState::Stopped) {
                self.lock().snapshots.insert(snapshot.id.clone(), snapshot);
            } else {
                remove_vm(&vm);
                self.snapshot_records.remove(&snapshot.id);
            }
        }
        for record in self.records.load() {
            known.insert(record.id.clone());
            self.take_over(record)?;
        }
        // What has no record was not finished.
        for name in self.fleet.names()?.difference(&known) {
            let shape = self.machine.shape(None, true);
            tracing::debug!("removing VM {name}, which no record has");
            remove_vm(&self.vm(name, &shape)?);
        }
        Ok(())
    }

    fn take_over(&self, mut record: SandboxRecord) -> Result<(), SandboxError> {
        let vm = self.vm(&record.id, &record.shape)?;
        let state = vm.status()?.map(|status| status.state);
        let is_over = record.ends_unix_ms <= now_ms() && record.paused.is_none();
        let is_kept = match (state, record.paused) {
            _ if is_over && record.on_timeout == OnTimeout::Kill => false,
            (Some(VmState::Running), _) => {
                record.paused = None;
                true
            }
            (Some(VmState::Suspended), Some(Paused::WithMemory)) => true,
            (Some(VmState::Stopped), Some(Paused::DiskOnly)) => true,
            // The server was killed while it was being paused, forked or resumed.
            (Some(VmState::Suspended | VmState::Suspending | VmState::Resuming), _) => {
                vm.up().start().is_ok()
            }
            (Some(VmState::Starting), _) => vm.up().start().is_ok(),
            _ => false,
        };
        if !is_kept {
            remove_vm(&vm);
            self.records.remove(&record.id);
            return Ok(());
        }
        self.records.save(&record)?;
        let admission =
            record.paused.is_none().then(|| self.admissions.take(record.shape.memory_mib));
        self.insert(Sandbox::new(vm, record), admission);
        Ok(())
    }
}
