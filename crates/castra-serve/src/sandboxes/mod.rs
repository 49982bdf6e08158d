//! All sandboxes of a server.
//!
//! ```text
//!            create ┌─────────┐ pause, time out ┌────────┐
//!  template ───────►│ running │────────────────►│ paused │
//!  snapshot ───────►│         │◄────────────────│        │
//!                   └────┬────┘ connect, resume └───┬────┘
//!                        └──── kill, time out ──────┴────► (nothing is left)
//! ```
//!
//! A record is written before its VM is made, and removed after it: a server that was killed finds
//! every VM by its record when it starts again.

mod error;
mod limits;
mod pool;
mod record;
mod recover;
mod sandbox;
mod shell;
mod snapshots;
mod templates;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use castra_engine::{Cancel, Castra, Fleet, SandboxBuilder, Vm};
use jiff::Timestamp;
use tokio::task::{JoinSet, spawn_blocking};

pub(crate) use error::SandboxError;
pub use limits::Limits;
use limits::{Admission, Admissions};
use pool::{Pool, Ready, Room};
use record::Records;
pub(crate) use record::{OnTimeout, Paused, SandboxRecord, Shape, SnapshotRecord};
pub(crate) use sandbox::Sandbox;
pub(crate) use shell::BASH;
pub(crate) use templates::{BASE, Templates, USER};

use crate::error::ServeError;
use crate::random;

/// Interval of looks at the time limits.
const TICK: Duration = Duration::from_millis(250);

/// Least time of a sandbox that a request has resumed, as its makers expect.
const LEAST_AWAKE_MS: i64 = 300_000;

/// Wish for a sandbox.
pub(crate) struct Wish {
    /// Template, or a snapshot's identifier or name.
    pub(crate) template: String,
    pub(crate) timeout: Duration,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) has_token: bool,
    pub(crate) on_timeout: OnTimeout,
    pub(crate) auto_resume: bool,
    pub(crate) is_isolated: bool,
    /// Memory, in MiB, instead of that of all. A snapshot has its own.
    pub(crate) memory_mib: Option<u64>,
}

/// Settings of a server's sandboxes.
#[derive(Clone)]
pub struct SandboxOptions {
    /// Settings of all sandboxes, but for those below.
    pub settings: SandboxBuilder,
    /// Images that clients can name as templates.
    pub images: Vec<String>,
    /// Machine of each sandbox.
    pub machine: Machine,
    /// Limits of all sandboxes together.
    pub limits: Limits,
    /// Number of VMs to keep ready for new sandboxes, of each kind that clients make.
    pub pool: usize,
}

/// Machine of sandboxes, unless their snapshot says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Maximum size of the disk, in MiB.
    pub disk_mib: u64,
}

impl Machine {
    /// Returns the shape of a sandbox with an image, or with the default one.
    fn shape(self, image: Option<String>, is_isolated: bool) -> Shape {
        let Self { cpus, memory_mib, disk_mib } = self;
        Shape { image, cpus, memory_mib, disk_mib, is_isolated }
    }
}

/// All sandboxes and snapshots.
pub(crate) struct Sandboxes {
    fleet: Fleet,
    /// Flag that cancels first starts. All else is done to its end.
    cancel: Cancel,
    templates: Templates,
    machine: Machine,
    admissions: Admissions,
    pool: Pool,
    records: Records<SandboxRecord>,
    snapshot_records: Records<SnapshotRecord>,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    snapshots: BTreeMap<String, SnapshotRecord>,
    /// Rooms of the sandboxes that run.
    admissions: BTreeMap<String, Admission>,
}

impl Sandboxes {
    /// Returns the sandboxes below a directory, for one server alone.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub(crate) fn open(
        castra: &Castra,
        root: &Path,
        options: &SandboxOptions,
    ) -> Result<Self, ServeError> {
        let SandboxOptions { settings, images, machine, limits, pool } = options.clone();
        let failed = |source: io::Error| ServeError::Directory { path: root.to_owned(), source };
        let fleet = castra.with_cancel(Cancel::new()).fleet(root);
        Ok(Self {
            fleet: fleet.map_err(|error| failed(io::Error::other(error.to_string())))?,
            cancel: castra.cancel(),
            templates: Templates::new(settings, root, images)?,
            machine,
            admissions: Admissions::new(limits),
            pool: Pool::new(pool, machine.shape(None, false)),
            records: Records::open(root).map_err(failed)?,
            snapshot_records: Records::open(root).map_err(failed)?,
            all: Mutex::default(),
        })
    }

    /// Returns the templates.
    pub(crate) fn templates(&self) -> &Templates {
        &self.templates
    }

    /// Returns the machine of new sandboxes.
    pub(crate) fn machine(&self) -> Machine {
        self.machine
    }

    /// Returns a sandbox.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`].
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Sandbox>, SandboxError> {
        let found = self.lock().sandboxes.get(id).cloned();
        found.ok_or_else(|| SandboxError::NotFound(id.to_owned()))
    }

    /// Returns all records, in no order.
    pub(crate) fn list(&self) -> Vec<SandboxRecord> {
        self.lock().sandboxes.values().map(|sandbox| sandbox.record()).collect()
    }

    /// Makes a sandbox and waits until commands can run in it.
    ///
    /// # Errors
    /// An unknown template, no room, or a VM that does not start. Nothing is left then.
    pub(crate) async fn create(self: &Arc<Self>, wish: Wish) -> Result<Arc<Sandbox>, SandboxError> {
        let snapshot = self.snapshot(&wish.template);
        let shape = match &snapshot {
            Some(snapshot) => Shape { is_isolated: wish.is_isolated, ..snapshot.shape.clone() },
            None => self.shape(&wish)?,
        };
        let now = now_ms();
        let mut environment =
            snapshot.as_ref().map(|snapshot| snapshot.environment.clone()).unwrap_or_default();
        environment.extend(wish.environment);
        let template = match &snapshot {
            Some(snapshot) => snapshot.id.clone(),
            None => wish.template,
        };
        let room = match &snapshot {
            // Its VM is a clone.
            Some(_) => Room::Empty(self.admit(shape.memory_mib).await?),
            None => self.room(&shape).await?,
        };
        let id = match &room {
            Room::Ready(ready) => ready.vm.name().to_owned(),
            Room::Empty(_) => random::name()?,
        };
        let record = SandboxRecord {
            id,
            template,
            shape,
            metadata: wish.metadata,
            environment,
            access_token: wish.has_token.then(random::token).transpose()?,
            started_unix_ms: now,
            ends_unix_ms: now + millis(wish.timeout),
            timeout_ms: millis(wish.timeout),
            on_timeout: wish.on_timeout,
            auto_resume: wish.auto_resume,
            paused: None,
        };
        match room {
            Room::Ready(ready) => self.begin(record, ready).await,
            Room::Empty(admission) => self.start(record, snapshot, admission).await,
        }
    }

    /// Lets a VM that is ready run as a sandbox. If it cannot, another one is started in its room.
    /// The work is done even if the client goes away.
    async fn begin(
        self: &Arc<Self>,
        record: SandboxRecord,
        ready: Ready,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        let Ready { vm, session, shell, admission } = ready;
        let this = Arc::clone(self);
        let beginning = spawn_blocking(move || {
            // In this order: what has a record runs.
            let unpaused = vm.unpause().map_err(SandboxError::from);
            match unpaused.and_then(|()| Ok(this.records.save(&record)?)) {
                Ok(()) => {
                    let sandbox = Sandbox::of_ready(vm, record, session, shell);
                    Ok(this.insert(sandbox, Some(admission)))
                }
                Err(error) => {
                    tracing::warn!("sandbox {}, which was ready: {error}", record.id);
                    remove_vm(&vm);
                    this.records.remove(&record.id);
                    Err(Box::new((record, admission)))
                }
            }
        });
        match beginning.await.map_err(|_| SandboxError::Ending)? {
            Ok(sandbox) => Ok(sandbox),
            Err(unused) => {
                let (record, admission) = *unused;
                self.start(record, None, admission).await
            }
        }
    }

    fn shape(&self, wish: &Wish) -> Result<Shape, SandboxError> {
        let image = self.templates.image(&wish.template).ok_or_else(|| {
            SandboxError::NoTemplate(wish.template.clone(), self.templates.names().join(", "))
        })?;
        let memory_mib = wish.memory_mib.unwrap_or(self.machine.memory_mib);
        Ok(Machine { memory_mib, ..self.machine }.shape(image, wish.is_isolated))
    }

    /// Starts a sandbox that is recorded first, and removes what was made of it if that fails. The
    /// work is done even if the client goes away.
    async fn start(
        self: &Arc<Self>,
        record: SandboxRecord,
        snapshot: Option<SnapshotRecord>,
        admission: Admission,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        let vm = self.vm(&record.id, &record.shape)?;
        let source = snapshot.map(|snapshot| self.vm(&snapshot.id, &snapshot.shape)).transpose()?;
        self.records.save(&record)?;
        let this = Arc::clone(self);
        let starting = spawn_blocking(move || {
            let cloned = source.map_or(Ok(()), |source| source.clone_as(&record.id).map(drop));
            let started = cloned.and_then(|()| this.first_start(&vm));
            let recorded = started.map_err(SandboxError::from).and_then(|_| {
                // Its time begins now: the first one of a template takes a minute to start.
                let (mut record, now) = (record.clone(), now_ms());
                record.ends_unix_ms += now - record.started_unix_ms;
                record.started_unix_ms = now;
                this.records.save(&record)?;
                Ok(record)
            });
            match recorded {
                Ok(record) => Ok(this.insert(Sandbox::new(vm, record), Some(admission))),
                Err(error) => {
                    remove_vm(&vm);
                    this.records.remove(&record.id);
                    Err(error)
                }
            }
        });
        starting.await.map_err(|_| SandboxError::Ending)?
    }

    fn insert(&self, sandbox: Sandbox, admission: Option<Admission>) -> Arc<Sandbox> {
        let (id, sandbox) = (sandbox.record().id, Arc::new(sandbox));
        let mut all = self.lock();
        all.sandboxes.insert(id.clone(), Arc::clone(&sandbox));
        all.admissions.extend(admission.map(|admission| (id, admission)));
        sandbox
    }

    /// Gives the room of a sandbox that no longer runs to another.
    fn give_room(&self, id: &str) {
        self.lock().admissions.remove(id);
        self.pool.look();
    }

    fn vm(&self, id: &str, shape: &Shape) -> Result<Vm, SandboxError> {
        Ok(self.fleet.vm(id, &self.templates.settings(shape))?)
    }

    /// Starts a new VM, which may take as long as its template. Blocks.
    fn first_start(&self, vm: &Vm) -> castra_engine::error::Result<()> {
        vm.up().cancel(self.cancel.clone()).start().map(drop)
    }

    /// Gives a sandbox more or less time, from now on.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`].
    pub(crate) fn set_timeout(
        &self,
        id: &str,
        timeout: Duration,
        may_shorten: bool,
    ) -> Result<(), SandboxError> {
        let sandbox = self.get(id)?;
        let end = now_ms() + millis(timeout);
        let record = sandbox.change(|record| {
            if may_shorten || end > record.ends_unix_ms {
                record.ends_unix_ms = end;
            }
        });
        Ok(self.records.save(&record)?)
    }

    /// Ends a sandbox and removes everything of it.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], and if its VM cannot be removed.
    pub(crate) async fn kill(self: &Arc<Self>, id: &str) -> Result<(), SandboxError> {
        let sandbox = self.get(id)?;
        let _lifecycle = sandbox.lifecycle.lock().await;
        // Another request may have been faster.
        if self.lock().sandboxes.remove(id).is_none() {
            return Err(SandboxError::NotFound(id.to_owned()));
        }
        sandbox.end_session().await;
        let (this, id, vm) = (Arc::clone(self), id.to_owned(), sandbox.vm.clone());
        let ending = spawn_blocking(move || {
            remove_vm(&vm);
            this.records.remove(&id);
            this.give_room(&id);
        });
        ending.await.map_err(|_| SandboxError::Ending)
    }

    /// Pauses a sandbox.
    ///
    /// # Errors
    /// [`SandboxError::AlreadyPaused`], and if its memory cannot be saved.
    pub(crate) async fn pause(
        self: &Arc<Self>,
        id: &str,
        kind: Paused,
    ) -> Result<(), SandboxError> {
        let sandbox = self.get(id)?;
        let _lifecycle = sandbox.lifecycle.lock().await;
        if sandbox.record().paused.is_some() {
            return Err(SandboxError::AlreadyPaused(id.to_owned()));
        }
        sandbox.end_session().await;
        let vm = sandbox.vm.clone();
        let pausing = spawn_blocking(move || match kind {
            Paused::WithMemory => vm.suspend(),
            Paused::DiskOnly => vm.down().stop().map(drop),
        });
        pausing.await.map_err(|_| SandboxError::Ending)??;
        let record = sandbox.change(|record| record.paused = Some(kind));
        self.give_room(id);
        Ok(self.records.save(&record)?)
    }

    /// Resumes a sandbox that is paused. With `is_cold`, its memory is dropped and it boots. One
    /// that runs is left alone. Returns `true` if it was paused.
    ///
    /// # Errors
    /// No room, or a VM that does not resume.
    pub(crate) async fn resume(
        self: &Arc<Self>,
        id: &str,
        is_cold: bool,
    ) -> Result<bool, SandboxError> {
        let sandbox = self.get(id)?;
        let _lifecycle = sandbox.lifecycle.lock().await;
        let record = sandbox.record();
        if record.paused.is_none() {
            return Ok(false);
        }
        let admission = self.admit(record.shape.memory_mib).await?;
        let vm = sandbox.vm.clone();
        let resuming = spawn_blocking(move || {
            let up = vm.up();
            if is_cold { up.discard_suspended().start() } else { up.start() }
        });
        resuming.await.map_err(|_| SandboxError::Ending)??;
        let record = sandbox.change(|record| record.paused = None);
        self.lock().admissions.insert(id.to_owned(), admission);
        self.records.save(&record)?;
        Ok(true)
    }

    /// Resumes a paused sandbox for a request, and gives it its time again.
    ///
    /// # Errors
    /// No room, or a VM that does not resume.
    pub(crate) async fn wake(self: &Arc<Self>, id: &str) -> Result<(), SandboxError> {
        let timeout_ms = self.get(id)?.record().timeout_ms.max(LEAST_AWAKE_MS);
        let timeout = Duration::from_millis(timeout_ms.unsigned_abs());
        // Before it runs, so that its old time does not end it at once.
        self.set_timeout(id, timeout, false)?;
        self.resume(id, false).await.map(drop)
    }

    /// Makes sandboxes that continue from the present state of one, each by itself.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], and if its memory cannot be saved. Each fork has a result of its
    /// own.
    pub(crate) async fn fork(
        self: &Arc<Self>,
        id: &str,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Result<Arc<Sandbox>, SandboxError>>, SandboxError> {
        let sandbox = self.get(id)?;
        let lifecycle = sandbox.lifecycle.lock().await;
        let source = sandbox.record();
        let now = now_ms();
        let mut forks = Vec::new();
        for _ in 0..count {
            let record = SandboxRecord {
                id: random::name()?,
                access_token: source.access_token.as_ref().map(|_| random::token()).transpose()?,
                started_unix_ms: now,
                ends_unix_ms: now + millis(timeout),
                timeout_ms: millis(timeout),
                paused: None,
                ..source.clone()
            };
            let admitted = self.admit(record.shape.memory_mib).await;
            let prepared = admitted.and_then(|admission| {
                let vm = self.vm(&record.id, &record.shape)?;
                self.records.save(&record)?;
                Ok((vm, record, admission))
            });
            forks.push(prepared);
        }
        if source.paused.is_none() {
            sandbox.end_session().await;
        }
        let (this, vm) = (Arc::clone(self), sandbox.vm.clone());
        let cloning = spawn_blocking(move || {
            let is_running = source.paused.is_none();
            if is_running {
                vm.suspend()?;
            }
            let forks: Vec<_> = forks
                .into_iter()
                .map(|fork| {
                    let (clone, record, admission) = fork?;
                    match vm.clone_as(&record.id) {
                        Ok(_) => Ok((clone, record, admission)),
                        Err(error) => {
                            this.records.remove(&record.id);
                            Err(SandboxError::from(error))
                        }
                    }
                })
                .collect();
            let resumed = if is_running { vm.up().start().map(drop) } else { Ok(()) };
            if resumed.is_err() {
                for (clone, record, _) in forks.iter().flatten() {
                    remove_vm(clone);
                    this.records.remove(&record.id);
                }
            }
            resumed.map(|()| forks)
        });
        let forks = cloning.await.map_err(|_| SandboxError::Ending)??;
        drop(lifecycle);
        let mut starting = JoinSet::new();
        for (number, fork) in forks.into_iter().enumerate() {
            let this = Arc::clone(self);
            starting.spawn_blocking(move || {
                let started = fork.and_then(|(vm, record, admission)| match vm.up().start() {
                    Ok(_) => Ok(this.insert(Sandbox::new(vm, record), Some(admission))),
                    Err(error) => {
                        remove_vm(&vm);
                        this.records.remove(&record.id);
                        Err(error.into())
                    }
                });
                (number, started)
            });
        }
        let mut started = starting.join_all().await;
        started.sort_by_key(|(number, _)| *number);
        Ok(started.into_iter().map(|(_, started)| started).collect())
    }

    /// Ends or pauses each sandbox when its time is over, for ever.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        let mut ending: BTreeMap<String, tokio::task::JoinHandle<()>> = BTreeMap::new();
        loop {
            tokio::time::sleep(TICK).await;
            ending.retain(|_, task| !task.is_finished());
            let now = now_ms();
            let is_over =
                |record: &SandboxRecord| record.paused.is_none() && record.ends_unix_ms <= now;
            for record in self.list().into_iter().filter(is_over) {
                let (this, id) = (Arc::clone(&self), record.id.clone());
                ending.entry(record.id).or_insert_with(|| {
                    tokio::spawn(async move { this.end_in_time(&id, record.on_timeout).await })
                });
            }
        }
    }

    async fn end_in_time(self: &Arc<Self>, id: &str, fate: OnTimeout) {
        let ended = match fate {
            OnTimeout::Kill => self.kill(id).await,
            OnTimeout::Pause => self.pause(id, Paused::WithMemory).await,
            OnTimeout::Stop => self.pause(id, Paused::DiskOnly).await,
        };
        if let Err(error) = ended {
            tracing::warn!("sandbox {id}, whose time is over: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a VM and removes its files. What cannot be removed now is removed by the next server.
fn remove_vm(vm: &Vm) {
    // One that has not begun to start cannot be stopped, and has files nevertheless.
    let stopped = vm.down().force().discard_suspended().stop();
    if let Err(error) = vm.remove() {
        tracing::warn!("VM {}: {}", vm.name(), stopped.err().unwrap_or(error));
    }
}

/// Returns a time as RFC 3339 writes it.
pub(crate) fn time(unix_ms: i64) -> String {
    Timestamp::from_millisecond(unix_ms).unwrap_or_default().to_string()
}

/// Returns the time in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}
