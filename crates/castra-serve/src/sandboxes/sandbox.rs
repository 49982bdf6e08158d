//! One sandbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use castra_engine::Vm;
use castra_engine::session::{GuestSession, RunningProgram, SessionError};
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use super::error::SandboxError;
use super::record::SandboxRecord;
use super::shell::find_shell;
use crate::envd::Watcher;

/// A sandbox that runs or is paused.
pub(crate) struct Sandbox {
    pub(super) vm: Vm,
    record: Mutex<SandboxRecord>,
    /// Held by whatever starts, pauses or ends the VM, and for a moment by each request for it.
    pub(super) lifecycle: AsyncMutex<()>,
    session: AsyncMutex<Option<Arc<GuestSession>>>,
    /// Shell of the guest, once it is known.
    shell: OnceCell<&'static str>,
    /// Watches that clients poll, by their names.
    pub(crate) watchers: Mutex<HashMap<String, Arc<Watcher>>>,
}

impl Sandbox {
    pub(super) fn new(vm: Vm, record: SandboxRecord) -> Self {
        Self {
            vm,
            record: Mutex::new(record),
            lifecycle: AsyncMutex::default(),
            session: AsyncMutex::default(),
            shell: OnceCell::new(),
            watchers: Mutex::default(),
        }
    }

    /// Returns a sandbox whose VM was ready in advance.
    pub(super) fn of_ready(
        vm: Vm,
        record: SandboxRecord,
        session: Arc<GuestSession>,
        shell: &'static str,
    ) -> Self {
        let (session, shell) = (AsyncMutex::new(Some(session)), OnceCell::new_with(Some(shell)));
        Self { session, shell, ..Self::new(vm, record) }
    }

    /// Returns the record as it is now.
    pub(crate) fn record(&self) -> SandboxRecord {
        self.lock().clone()
    }

    /// Returns the record once nothing is being done with the VM.
    pub(crate) async fn settled(&self) -> SandboxRecord {
        let _lifecycle = self.lifecycle.lock().await;
        self.record()
    }

    /// Changes the record in memory, and returns it.
    pub(super) fn change(&self, change: impl FnOnce(&mut SandboxRecord)) -> SandboxRecord {
        let mut record = self.lock();
        change(&mut record);
        record.clone()
    }

    fn lock(&self) -> MutexGuard<'_, SandboxRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a session with the guest, which all requests share. Waits for whatever is being done
    /// with the VM.
    ///
    /// # Errors
    /// The sandbox is paused, or its guest cannot be reached.
    pub(crate) async fn session(&self) -> Result<Arc<GuestSession>, SandboxError> {
        let _lifecycle = self.lifecycle.lock().await;
        let record = self.record();
        if record.paused.is_some() {
            return Err(SandboxError::Paused(record.id));
        }
        let mut session = self.session.lock().await;
        if let Some(session) = session.as_ref().filter(|session| !session.has_ended()) {
            return Ok(Arc::clone(session));
        }
        let opened = Arc::new(self.vm.session().await?);
        *session = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Follows a program again after its VM was suspended for a moment, as for a fork.
    ///
    /// # Errors
    /// [`SandboxError::ProcessEnded`], and if the guest cannot be reached.
    pub(crate) async fn follow_again(
        &self,
        program: &RunningProgram,
    ) -> Result<RunningProgram, SandboxError> {
        let (pid, received) = (program.pid(), program.received());
        let followed = self.session().await?.follow_from(pid, received).await;
        followed.map_err(|error| match error {
            SessionError::NotFound => SandboxError::ProcessEnded(pid),
            error => error.into(),
        })
    }

    /// Returns the shell that clients get for bash.
    pub(crate) async fn shell(&self, session: &GuestSession) -> &'static str {
        self.shell.get_or_init(|| find_shell(session)).await
    }

    /// Ends the session, whose VM is about to stop.
    pub(super) async fn end_session(&self) {
        self.session.lock().await.take();
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
