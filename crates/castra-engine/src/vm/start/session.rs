//! Session with the agent of a guest that boots, is restored or runs, at the control port.

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use castra_wire::{AgentTask, DiskOrder, GuestMessage, Personality, Relay, Secret, Stage};

use crate::guest::{ControlError, ControlPort, VmKeys};
use crate::host::{random_bytes, unix_time};
use crate::layout::SocketsLayout;
use crate::qemu::MachineStatus;
use crate::report::Event;
use crate::vm::error::{StartError, VmError, VmIoError};
use crate::vm::hostname::hostname;
use crate::vm::monitor::disk_full;
use crate::vm::record::{BootRecord, MissingModules};
use crate::vm::timeline::{Phase, Stopwatch};

use super::options::WaitFor;
use super::watch::{BootEnd, BootWatch, LOOK_EVERY, Looks};
use crate::vm::ports;

/// Time for a restored guest to answer. It does so within a fraction of a second, within seconds on
/// a busy host.
const WAKE_LIMIT: Duration = Duration::from_secs(60);
/// Time after which it is asked again. *Measured*: agents of older machines may drop the answer to
/// the first request.
const WAKE_PATIENCE: Duration = Duration::from_secs(5);

/// Session with the agent of a guest, until it has reached the stage that `up` waits for.
pub(in crate::vm) struct BootSession<'a> {
    pub(in crate::vm) watch: BootWatch<'a>,
    /// Ports that the agent is to relay, if it can.
    pub(in crate::vm) relays: Option<Vec<Relay>>,
    /// Data disks, with what the agent is to do with each.
    pub(in crate::vm) disks: Vec<DiskOrder>,
    pub(in crate::vm) wait: WaitFor,
    /// Report of the guest that its kernel's modules are missing.
    pub(in crate::vm) missing_modules: RefCell<Option<MissingModules>>,
}

impl<'a> BootSession<'a> {
    /// Creates a session with the guest of a QEMU that runs already, until it is ready again.
    pub(in crate::vm) fn of_running(
        watch: BootWatch<'a>,
        boot: &BootRecord,
        disks: Vec<DiskOrder>,
    ) -> Self {
        let relays = boot.relayed.then(|| ports::relays(&boot.port_forwards));
        Self { watch, relays, disks, wait: WaitFor::Ready, missing_modules: RefCell::default() }
    }
}

impl BootSession<'_> {
    /// Follows the boot until the awaited stage is reached.
    pub(in crate::vm) fn follow(
        &self,
        sockets: &SocketsLayout,
        keys: &VmKeys,
        mut is_alive: impl FnMut() -> bool,
    ) -> Result<(), BootEnd> {
        let personality = self.personality(keys).map_err(BootEnd::other)?;
        let limits = self.watch.limits();
        let looks = Looks::default();
        let (mut reached, mut reported): (Option<Stage>, _) = (None, Vec::new());
        let mut awaited = match self.wait {
            WaitFor::Services => vec![Stage::Ready, Stage::Services],
            WaitFor::Nothing | WaitFor::Ready => vec![Stage::Ready],
        };
        let mut port =
            self.connect(sockets, self.watch.started + limits.hello, &mut is_alive, limits.hello)?;
        port.attach().map_err(|error| BootEnd::of_session(error, reached, limits.hello))?;
        while !awaited.is_empty() {
            let limit = if reached.is_none() { limits.hello } else { limits.ready };
            let deadline = self.watch.started + limit;
            let message = match port.next(deadline.min(Instant::now() + LOOK_EVERY)) {
                Err(_) if !is_alive() => return Err(BootEnd::Died),
                Err(ControlError::ReadTimeout) if Instant::now() < deadline => {
                    self.watch.look(sockets, &looks, reached)?;
                    continue;
                }
                other => other.map_err(|error| BootEnd::of_session(error, reached, limit))?,
            };
            for stage in self.hear(message, &mut port, &personality, &mut reported)? {
                awaited.retain(|awaited| *awaited != stage);
                reached = reached.max(Some(stage));
            }
        }
        Ok(())
    }

    /// Gives a guest that was restored or resumed its identity. Its boot is over, so it is ready
    /// then. A guest that does not answer over `connected` is asked again on a new connection,
    /// which it notices by itself.
    pub(in crate::vm) fn wake(
        &self,
        sockets: &SocketsLayout,
        mut connected: Option<UnixStream>,
        keys: &VmKeys,
        mut is_alive: impl FnMut() -> bool,
    ) -> Result<(), BootEnd> {
        let end = self.watch.started + WAKE_LIMIT;
        loop {
            let deadline = end.min(Instant::now() + WAKE_PATIENCE);
            match self.wake_once(sockets, connected.take(), keys, &mut is_alive, deadline) {
                Err(BootEnd::TimedOut { .. })
                    if MachineStatus::glance(sockets) == Some(MachineStatus::DiskFull) =>
                {
                    return Err(BootEnd::other(disk_full(self.watch.vm, self.watch.disk)));
                }
                Err(BootEnd::TimedOut { .. }) if Instant::now() < end => {}
                other => return other,
            }
        }
    }

    fn personality(&self, keys: &VmKeys) -> Result<Personality, VmError> {
        personality(self.watch.vm, keys, self.relays.as_ref(), &self.disks)
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
            match ControlPort::connect(&sockets.control(), look, &self.watch.context.cancel) {
                Err(ControlError::Connect { .. }) if !is_alive() => return Err(BootEnd::Died),
                Err(ControlError::Connect { .. }) if Instant::now() >= look && look < deadline => {}
                other => return other.map_err(|error| BootEnd::of_session(error, None, limit)),
            }
        }
    }

    fn wake_once(
        &self,
        sockets: &SocketsLayout,
        connected: Option<UnixStream>,
        keys: &VmKeys,
        is_alive: &mut impl FnMut() -> bool,
        deadline: Instant,
    ) -> Result<(), BootEnd> {
        // The clock is read at the last moment.
        let personality = self.personality(keys).map_err(BootEnd::other)?;
        let failed = |error| BootEnd::of_session(error, None, WAKE_LIMIT);
        let mut port = match connected {
            Some(socket) => {
                ControlPort::over(socket, &self.watch.context.cancel).map_err(failed)?
            }
            None => self.connect(sockets, deadline, is_alive, WAKE_LIMIT)?,
        };
        port.personalise(personality).map_err(failed)?;
        loop {
            match port.next(deadline) {
                Err(_) if !is_alive() => return Err(BootEnd::Died),
                Ok(GuestMessage::Personalised) => return Ok(()),
                Ok(GuestMessage::Failed { task: AgentTask::Personalise, reason }) => {
                    let task = task_name(AgentTask::Personalise);
                    return Err(BootEnd::other(StartError::AgentFailed {
                        vm: self.watch.vm.to_owned(),
                        task,
                        reason,
                    }));
                }
                Ok(_) => {}
                Err(error) => return Err(failed(error)),
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
        record_times(&message, self.watch.stopwatch);
        match message {
            GuestMessage::Hello { personalised, stages, .. } => {
                if !personalised {
                    // The clock is read at the last moment, since a boot takes seconds.
                    port.personalise(Personality {
                        time_unix_ns: now_unix_ns(),
                        ..personality.clone()
                    })
                    .map_err(|error| BootEnd::of_session(error, None, WAKE_LIMIT))?;
                }
                Ok(stages.into_iter().map(|reached| reached.stage).collect())
            }
            GuestMessage::Stage(reached) => Ok(vec![reached.stage]),
            // Without these, commands will never run: further waiting would only hide it.
            GuestMessage::Failed {
                task: task @ (AgentTask::EnterRoot | AgentTask::Personalise | AgentTask::Ssh),
                reason,
            } => Err(BootEnd::other(StartError::AgentFailed {
                vm: self.watch.vm.to_owned(),
                task: task_name(task),
                reason,
            })),
            GuestMessage::Failed { task, .. } | GuestMessage::Notice { task, .. }
                if reported.contains(&task) =>
            {
                Ok(Vec::new())
            }
            GuestMessage::Failed { task, reason } => {
                reported.push(task);
                let message = format!(
                    "VM `{}`: the agent could not {}: {reason}",
                    self.watch.vm,
                    task_name(task)
                );
                self.watch.context.reporter.report(&Event::Warning { message });
                Ok(Vec::new())
            }
            GuestMessage::Notice { task, text } => {
                reported.push(task);
                let message = format!("VM `{}`: {text}", self.watch.vm);
                self.watch.context.reporter.report(&Event::Warning { message });
                Ok(Vec::new())
            }
            GuestMessage::ModulesMissing { kernel, installed } => {
                self.missing_modules.replace(MissingModules::reported(kernel, installed));
                Ok(Vec::new())
            }
            GuestMessage::RootMounted { .. }
            | GuestMessage::Personalised
            | GuestMessage::Settled
            | GuestMessage::Provisionable
            | GuestMessage::Inspected(_)
            | GuestMessage::Synced
            | GuestMessage::Listeners { .. }
            | GuestMessage::RootGrown(_)
            | GuestMessage::PoweringOff => Ok(Vec::new()),
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
        AgentTask::Provision => "let programs run",
        AgentTask::FollowBoot => "finish the boot",
        AgentTask::Disks => "mount all of its disks",
        AgentTask::Protocol => "understand castra",
    }
}

fn personality(
    vm: &str,
    keys: &VmKeys,
    relays: Option<&Vec<Relay>>,
    disks: &[DiskOrder],
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
        disks: Some(disks.to_vec()),
    })
}

fn now_unix_ns() -> u64 {
    u64::try_from(unix_time().as_nanos()).unwrap_or(0)
}
