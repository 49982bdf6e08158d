//! Watch over a boot through the control port, until the guest has reached the stage that `up`
//! waits for.

use std::cell::{Cell, OnceCell, RefCell};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use castra_wire::{AgentTask, GuestMessage, Personality, Relay, Secret, Stage};

use crate::context::RuntimeContext;
use crate::guest::{ControlError, ControlPort, VmKeys};
use crate::host::{random_bytes, unix_time};
use crate::layout::{SocketsLayout, VmLayout};
use crate::qemu::{Accelerator, MachineStatus};
use crate::report::Event;
use crate::vm::diagnosis::{About, Evidence, HostFacts, Trouble, Words, diagnose};
use crate::vm::error::{AccessError, StartError, VmError, VmIoError};
use crate::vm::monitor::disk_full;
use crate::vm::record::{BootRecord, MissingModules, StartKind};
use crate::vm::timeline::{Phase, Stopwatch, Timeline, timelines, usual_ms};

use super::limits::{Limits, least_patience, patience};
use super::options::WaitFor;
use super::ports;

/// Time for a restored guest to answer. It does so within a fraction of a second, within seconds on
/// a busy host.
const WAKE_LIMIT: Duration = Duration::from_secs(60);
/// Time after which it is asked again. *Measured*: about one of a hundred restores on a busy
/// machine misses the first request.
const WAKE_PATIENCE: Duration = Duration::from_secs(5);
/// Interval at which a wait for the guest checks its console.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watch over a boot through the control port.
pub(in crate::vm) struct BootWatch<'a> {
    pub(in crate::vm) vm: &'a str,
    pub(in crate::vm) files: &'a VmLayout,
    /// Path of its disk, which may run out of space.
    pub(in crate::vm) disk: &'a Path,
    pub(in crate::vm) accelerator: Accelerator,
    pub(in crate::vm) cpus: u32,
    pub(in crate::vm) memory_mib: u64,
    /// Ports that the agent is to relay, if it can.
    pub(in crate::vm) relays: Option<Vec<Relay>>,
    /// Set if commands could run in it before: then it is in no known phase of a boot.
    pub(in crate::vm) was_ready: bool,
    /// Time at which QEMU was started, or the wait began; limits count from it.
    pub(in crate::vm) started: Instant,
    pub(in crate::vm) wait: WaitFor,
    /// Time limit; `None` for one that fits.
    pub(in crate::vm) limit: Option<Duration>,
    pub(in crate::vm) context: &'a RuntimeContext,
    pub(in crate::vm) stopwatch: &'a Stopwatch,
    /// Report of the guest that its kernel's modules are missing.
    pub(in crate::vm) missing_modules: RefCell<Option<MissingModules>>,
}

/// Reason why the watch ended early.
pub(in crate::vm) enum BootEnd {
    TimedOut {
        limit: Duration,
        is_ready: bool,
    },
    Died,
    /// The guest will never be ready.
    Failed,
    Other(Box<VmError>),
}

impl BootEnd {
    fn other(error: impl Into<VmError>) -> Self {
        Self::Other(Box::new(error.into()))
    }
}

/// Observations and reports of a wait.
#[derive(Default)]
struct Looks {
    next: Cell<Option<Instant>>,
    console_bytes: Cell<u64>,
    is_slowness_reported: Cell<bool>,
    kept: OnceCell<Vec<Timeline>>,
}

impl<'a> BootWatch<'a> {
    /// Creates a watch over a VM whose QEMU runs already, until it is ready again; limits count
    /// from now.
    pub(in crate::vm) fn of_running(
        vm: &'a str,
        files: &'a VmLayout,
        disk: &'a Path,
        boot: &BootRecord,
        context: &'a RuntimeContext,
        stopwatch: &'a Stopwatch,
    ) -> Self {
        Self {
            vm,
            files,
            disk,
            was_ready: true,
            accelerator: boot.accelerator.accelerator,
            cpus: boot.cpus,
            memory_mib: boot.memory_mib,
            relays: boot.relayed.then(|| ports::relays(&boot.port_forwards)),
            started: Instant::now(),
            wait: WaitFor::Ready,
            limit: None,
            context,
            stopwatch,
            missing_modules: RefCell::default(),
        }
    }
}

impl BootWatch<'_> {
    /// Follows the boot until the awaited stage is reached.
    pub(in crate::vm) fn follow(
        &self,
        sockets: &SocketsLayout,
        keys: &VmKeys,
        mut is_alive: impl FnMut() -> bool,
    ) -> Result<(), BootEnd> {
        let personality =
            personality(self.vm, keys, self.relays.as_ref()).map_err(BootEnd::other)?;
        let limits = Limits::new(self.accelerator, self.cpus, self.limit);
        let looks = Looks::default();
        let (mut reached, mut reported): (Option<Stage>, _) = (None, Vec::new());
        let mut awaited = match self.wait {
            WaitFor::Services => vec![Stage::Ready, Stage::Services],
            WaitFor::Nothing | WaitFor::Ready => vec![Stage::Ready],
        };
        let mut port =
            self.connect(sockets, self.started + limits.hello, &mut is_alive, limits.hello)?;
        port.attach().map_err(|error| self.ended(error, reached, limits.hello))?;
        while !awaited.is_empty() {
            let limit = if reached.is_none() { limits.hello } else { limits.ready };
            let deadline = self.started + limit;
            let message = match port.next(deadline.min(Instant::now() + LOOK_EVERY)) {
                Err(_) if !is_alive() => return Err(BootEnd::Died),
                Err(ControlError::ReadTimeout) if Instant::now() < deadline => {
                    self.look(sockets, &looks, reached)?;
                    continue;
                }
                other => other.map_err(|error| self.ended(error, reached, limit))?,
            };
            for stage in self.hear(message, &mut port, &personality, &mut reported)? {
                awaited.retain(|awaited| *awaited != stage);
                reached = reached.max(Some(stage));
            }
        }
        Ok(())
    }

    /// Checks for a guest that has given up or is paused, and reports a phase that takes unusually
    /// long.
    fn look(
        &self,
        sockets: &SocketsLayout,
        looks: &Looks,
        reached: Option<Stage>,
    ) -> Result<(), BootEnd> {
        if looks.next.get().is_some_and(|next| Instant::now() < next) {
            return Ok(());
        }
        looks.next.set(Some(Instant::now() + LOOK_EVERY));
        if MachineStatus::glance(sockets) == Some(MachineStatus::DiskFull) {
            return Err(BootEnd::other(disk_full(self.vm, self.disk)));
        }
        let length = fs::metadata(self.files.console_log()).map_or(0, |metadata| metadata.len());
        let is_ready = reached >= Some(Stage::Ready);
        if looks.console_bytes.replace(length) != length && !is_ready && self.has_given_up() {
            return Err(BootEnd::Failed);
        }
        let (phase, elapsed) = self.phase();
        if !looks.is_slowness_reported.get() && elapsed >= least_patience(self.accelerator) {
            let kept = looks.kept.get_or_init(|| timelines(self.files));
            let usual_ms = usual_ms(kept, phase, StartKind::Boot, self.accelerator);
            if elapsed >= patience(self.accelerator, usual_ms.map(Duration::from_millis)) {
                looks.is_slowness_reported.set(true);
                self.report_slowness(phase, elapsed, usual_ms);
            }
        }
        Ok(())
    }

    fn has_given_up(&self) -> bool {
        let words = Words::read(&self.files.console_log(), &self.files.qemu_log());
        has_given_up(self.vm, self.memory_mib, self.accelerator, &words).is_some()
    }

    fn report_slowness(&self, phase: Phase, elapsed: Duration, usual_ms: Option<u64>) {
        if self.was_ready {
            let what =
                format!("the guest of VM `{}`, which was ready but is not responding", self.vm);
            self.context.reporter.report(&Event::Waiting { what });
            return;
        }
        let words = Words::read(&self.files.console_log(), &self.files.qemu_log());
        let trouble = Trouble::gather(&self.about(false, None), phase, elapsed, usual_ms);
        self.context.reporter.report(&Event::VmSlow {
            vm: self.vm.to_owned(),
            phase: phase.name().to_owned(),
            in_phase_ms: trouble.in_phase_ms,
            usual_ms,
            console: words.last_line(),
            cause: trouble.diagnosis.as_ref().map(|diagnosis| diagnosis.cause.clone()),
        });
    }

    fn phase(&self) -> (Phase, Duration) {
        self.stopwatch.current().unwrap_or((Phase::Kernel, self.started.elapsed()))
    }

    fn about(&self, has_ended: bool, signal: Option<i32>) -> About<'_> {
        let (vm, files, accelerator, memory_mib) =
            (self.vm, self.files, self.accelerator, self.memory_mib);
        About { vm, files, accelerator, memory_mib, has_ended, signal }
    }

    /// Gives a guest that was restored or resumed its identity. Its boot is over, so it is ready
    /// then. A guest that does not answer is asked again on a new connection, which it notices by
    /// itself.
    pub(in crate::vm) fn wake(
        &self,
        sockets: &SocketsLayout,
        keys: &VmKeys,
        mut is_alive: impl FnMut() -> bool,
    ) -> Result<(), BootEnd> {
        let end = self.started + WAKE_LIMIT;
        loop {
            let deadline = end.min(Instant::now() + WAKE_PATIENCE);
            match self.wake_once(sockets, keys, &mut is_alive, deadline) {
                Err(BootEnd::TimedOut { .. })
                    if MachineStatus::glance(sockets) == Some(MachineStatus::DiskFull) =>
                {
                    return Err(BootEnd::other(disk_full(self.vm, self.disk)));
                }
                Err(BootEnd::TimedOut { .. }) if Instant::now() < end => {}
                other => return other,
            }
        }
    }

    /// Connects to the control port, without waiting for a QEMU that has ended.
    fn connect(
        &self,
        sockets: &SocketsLayout,
        deadline: Instant,
        is_alive: &mut impl FnMut() -> bool,
        limit: Duration,
    ) -> Result<ControlPort, BootEnd> {
        loop {
            let look = deadline.min(Instant::now() + LOOK_EVERY);
            match ControlPort::connect(&sockets.control(), look, &self.context.cancel) {
                Err(ControlError::Connect { .. }) if !is_alive() => return Err(BootEnd::Died),
                Err(ControlError::Connect { .. }) if Instant::now() >= look && look < deadline => {}
                other => return other.map_err(|error| self.ended(error, None, limit)),
            }
        }
    }

    fn wake_once(
        &self,
        sockets: &SocketsLayout,
        keys: &VmKeys,
        is_alive: &mut impl FnMut() -> bool,
        deadline: Instant,
    ) -> Result<(), BootEnd> {
        // The clock is read at the last moment.
        let personality =
            personality(self.vm, keys, self.relays.as_ref()).map_err(BootEnd::other)?;
        let mut port = self.connect(sockets, deadline, is_alive, WAKE_LIMIT)?;
        port.personalise(personality).map_err(|error| self.ended(error, None, WAKE_LIMIT))?;
        loop {
            match port.next(deadline) {
                Err(_) if !is_alive() => return Err(BootEnd::Died),
                Ok(GuestMessage::Personalised) => return Ok(()),
                Ok(GuestMessage::Failed { task: AgentTask::Personalise, reason }) => {
                    let task = task_name(AgentTask::Personalise);
                    return Err(BootEnd::other(StartError::AgentFailed {
                        vm: self.vm.to_owned(),
                        task,
                        reason,
                    }));
                }
                Ok(_) => {}
                Err(error) => return Err(self.ended(error, None, WAKE_LIMIT)),
            }
        }
    }

    /// Handles a message, answers it if needed, and returns the stages that it reports.
    fn hear(
        &self,
        message: GuestMessage,
        port: &mut ControlPort,
        personality: &Personality,
        reported: &mut Vec<AgentTask>,
    ) -> Result<Vec<Stage>, BootEnd> {
        record_times(&message, self.stopwatch);
        match message {
            GuestMessage::Hello { personalised, stages, .. } => {
                if !personalised {
                    // The clock is read at the last moment, since a boot takes seconds.
                    port.personalise(Personality {
                        time_unix_ns: now_unix_ns(),
                        ..personality.clone()
                    })
                    .map_err(|error| self.ended(error, None, WAKE_LIMIT))?;
                }
                Ok(stages.into_iter().map(|reached| reached.stage).collect())
            }
            GuestMessage::Stage(reached) => Ok(vec![reached.stage]),
            // Without these, commands will never run: further waiting would only hide it.
            GuestMessage::Failed {
                task: task @ (AgentTask::EnterRoot | AgentTask::Personalise | AgentTask::Ssh),
                reason,
            } => Err(BootEnd::other(StartError::AgentFailed {
                vm: self.vm.to_owned(),
                task: task_name(task),
                reason,
            })),
            GuestMessage::Failed { task, .. } if reported.contains(&task) => Ok(Vec::new()),
            GuestMessage::Failed { task, reason } => {
                reported.push(task);
                let message =
                    format!("VM `{}`: the agent could not {}: {reason}", self.vm, task_name(task));
                self.context.reporter.report(&Event::Warning { message });
                Ok(Vec::new())
            }
            GuestMessage::ModulesMissing { kernel, installed } => {
                self.missing_modules.replace(MissingModules::reported(kernel, installed));
                Ok(Vec::new())
            }
            GuestMessage::RootMounted { .. }
            | GuestMessage::Personalised
            | GuestMessage::Settled
            | GuestMessage::Inspected(_)
            | GuestMessage::Synced
            | GuestMessage::Listeners { .. }
            | GuestMessage::PoweringOff => Ok(Vec::new()),
        }
    }

    fn ended(&self, error: ControlError, reached: Option<Stage>, limit: Duration) -> BootEnd {
        match error {
            ControlError::ReadTimeout | ControlError::WriteTimeout => {
                BootEnd::TimedOut { limit, is_ready: reached >= Some(Stage::Ready) }
            }
            ControlError::Closed => BootEnd::Died,
            other => BootEnd::other(other),
        }
    }

    /// Returns the end as an error with all that is known. `signal` is the signal that ended QEMU,
    /// if any.
    pub(in crate::vm) fn explain(&self, end: BootEnd, signal: Option<i32>) -> VmError {
        let vm = self.vm.to_owned();
        let has_ended = matches!(end, BootEnd::Died);
        let trouble = || {
            let (phase, elapsed) = self.phase();
            let usual_ms =
                usual_ms(&timelines(self.files), phase, StartKind::Boot, self.accelerator);
            Box::new(Trouble::gather(&self.about(has_ended, signal), phase, elapsed, usual_ms))
        };
        match end {
            BootEnd::TimedOut { limit, is_ready: true } => {
                StartError::ServicesTimedOut { vm, limit_secs: limit.as_secs() }.into()
            }
            BootEnd::TimedOut { limit, is_ready: false } if self.was_ready => {
                AccessError::GuestSilent { vm, limit_secs: limit.as_secs() }.into()
            }
            BootEnd::TimedOut { limit, is_ready: false } => {
                StartError::BootTimedOut { vm, limit_secs: limit.as_secs(), trouble: trouble() }
                    .into()
            }
            BootEnd::Died => StartError::BootDied { vm, trouble: trouble() }.into(),
            BootEnd::Failed => StartError::BootFailed { vm, trouble: trouble() }.into(),
            BootEnd::Other(error) => *error,
        }
    }
}

/// Records the times of a message in the stopwatch.
pub(in crate::vm) fn record_times(message: &GuestMessage, stopwatch: &Stopwatch) {
    match message {
        GuestMessage::Hello { stages, uptime_ms, root_mounted_ms, .. } => {
            // An agent that does not report its uptime yet: the last stage was reached then or
            // earlier.
            let last = stages.iter().map(|reached| reached.uptime_ms).max();
            if let Some(uptime_ms) = uptime_ms.or(last) {
                stopwatch.on_clock(uptime_ms);
            }
            let mounted = root_mounted_ms.map(|uptime_ms| (Phase::Initramfs, uptime_ms));
            for reached in stages {
                if let Some((phase, uptime_ms)) = mounted.filter(|_| reached.stage == Stage::Root) {
                    stopwatch.on_end(phase, uptime_ms);
                }
                stopwatch.on_stage(*reached);
            }
            if let Some((phase, uptime_ms)) = mounted {
                stopwatch.on_end(phase, uptime_ms);
            }
        }
        GuestMessage::RootMounted { uptime_ms } => {
            stopwatch.on_clock(*uptime_ms);
            stopwatch.on_end(Phase::Initramfs, *uptime_ms);
        }
        GuestMessage::Stage(reached) => {
            stopwatch.on_clock(reached.uptime_ms);
            stopwatch.on_stage(*reached);
        }
        _ => {}
    }
}

/// Returns the reason why a guest with this output will never be ready, as far as the output shows.
pub(in crate::vm) fn has_given_up(
    vm: &str,
    memory_mib: u64,
    accelerator: Accelerator,
    words: &Words,
) -> Option<String> {
    let (console, qemu, host) = (words.console.as_str(), "", &HostFacts::default());
    let phase = Phase::Initramfs;
    let (has_ended, signal) = (false, None);
    let evidence =
        Evidence { vm, phase, console, qemu, has_ended, signal, accelerator, memory_mib, host };
    let found = diagnose(&evidence);
    found.filter(|diagnosis| diagnosis.is_final).map(|diagnosis| diagnosis.cause)
}

fn task_name(task: AgentTask) -> &'static str {
    match task {
        AgentTask::Network => "bring up the network",
        AgentTask::GrowRoot => "grow the root filesystem",
        AgentTask::EnterRoot => "enter the root filesystem",
        AgentTask::Personalise => "apply its keys and host name",
        AgentTask::Ssh => "start its SSH server",
        AgentTask::Relay => "relay a forwarded port",
        AgentTask::PowerOff => "shut the guest down",
        AgentTask::Settle => "settle",
        AgentTask::Protocol => "understand castra",
    }
}

fn personality(
    vm: &str,
    keys: &VmKeys,
    relays: Option<&Vec<Relay>>,
) -> Result<Personality, VmError> {
    // Twice the 256 bits that the kernel's pool is worth.
    let entropy: [u8; 64] = random_bytes().map_err(VmIoError::Random)?;
    Ok(Personality {
        time_unix_ns: now_unix_ns(),
        entropy: Secret::new(entropy.to_vec()),
        hostname: hostname(vm),
        machine_id: keys.machine_id(),
        host_key: Secret::new(keys.host_private_pem()?),
        authorized_keys: vec![keys.client_public_line()],
        relays: relays.cloned(),
    })
}

/// Returns the VM's name as a host name (RFC 1123): labels of letters, digits and inner hyphens.
fn hostname(vm: &str) -> String {
    let label = |label: &str| label.replace('_', "-").trim_matches('-').to_owned();
    let labels: Vec<String> = vm.split('.').map(label).filter(|label| !label.is_empty()).collect();
    labels.join(".")
}

fn now_unix_ns() -> u64 {
    u64::try_from(unix_time().as_nanos()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::hostname;

    #[test]
    fn every_vm_name_has_a_host_name() {
        assert_eq!(hostname("web"), "web");
        assert_eq!(hostname("db_1.prod-"), "db-1.prod");
        assert_eq!(hostname("a..b_"), "a.b");
    }
}
