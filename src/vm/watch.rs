//! Following a boot over the control port, until what is waited for is reached.

use std::time::{Duration, Instant};

use castra_wire::{Errand, GuestMessage, Personality, Secret, Stage, StageReached};

use crate::context::RuntimeContext;
use crate::guest::{ControlError, ControlPort, VmKeys};
use crate::harmless::harmless_log;
use crate::layout::{SocketsLayout, VmLayout};
use crate::qemu::{Accelerator, end_of_log};
use crate::random::random_bytes;
use crate::report::Event;

use super::clock::{millis, since_epoch};
use super::error::VmError;
use super::up::WaitFor;

/// How long a guest may take to be ready. Under TCG 6 s are usual on an idle machine, and ten times that on a busy one.
const BOOT_LIMIT_TCG: Duration = Duration::from_secs(300);
const BOOT_LIMIT_ACCELERATED: Duration = Duration::from_secs(120);
/// An accelerated guest whose agent has not said a word by then never will.
const SILENCE_LIMIT_ACCELERATED: Duration = Duration::from_secs(20);
/// A guest that goes on from where it was answers in a fraction of a second, on a busy machine in a few.
const WAKE_LIMIT: Duration = Duration::from_secs(60);
/// After this long it is asked again. *Measured*: about one of a hundred restores on a busy machine misses the first time.
const WAKE_PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for what.
struct Limits {
    hello: Duration,
    ready: Duration,
}

impl Limits {
    fn new(accelerator: Accelerator, asked: Option<Duration>) -> Self {
        let ready = boot_limit(accelerator, asked);
        let hello = match accelerator {
            Accelerator::Tcg => ready,
            Accelerator::Kvm | Accelerator::Hvf => asked.unwrap_or(SILENCE_LIMIT_ACCELERATED),
        };
        Self { hello, ready }
    }
}

/// How long a boot may take.
pub(super) fn boot_limit(accelerator: Accelerator, asked: Option<Duration>) -> Duration {
    asked.unwrap_or(match accelerator {
        Accelerator::Tcg => BOOT_LIMIT_TCG,
        Accelerator::Kvm | Accelerator::Hvf => BOOT_LIMIT_ACCELERATED,
    })
}

/// Follows a boot over the control port.
pub(super) struct BootWatch<'a> {
    vm: &'a str,
    started: Instant,
    wait: WaitFor,
    limits: Limits,
    context: &'a RuntimeContext,
}

/// Why following a boot ended early.
pub(super) enum BootEnd {
    TimedOut { limit: Duration, reached: String, is_ready: bool },
    Died { reached: String },
    Other(Box<VmError>),
}

impl BootEnd {
    fn other(error: impl Into<VmError>) -> Self {
        Self::Other(Box::new(error.into()))
    }
}

impl<'a> BootWatch<'a> {
    /// Watches a VM whose QEMU was started at `started`; limits count from there.
    pub(super) fn new(
        vm: &'a str,
        accelerator: Accelerator,
        started: Instant,
        wait: WaitFor,
        limit: Option<Duration>,
        context: &'a RuntimeContext,
    ) -> Self {
        Self { vm, started, wait, limits: Limits::new(accelerator, limit), context }
    }

    /// Goes on until the stage that is waited for is reached.
    pub(super) fn follow(
        &self,
        sockets: &SocketsLayout,
        keys: &VmKeys,
        mut is_alive: impl FnMut() -> bool,
    ) -> Result<(), BootEnd> {
        let personality = personality(self.vm, keys).map_err(BootEnd::other)?;
        let (mut reached, mut heard, mut told) = (None, Vec::new(), Vec::new());
        let mut awaited = match self.wait {
            WaitFor::Services => vec![Stage::Ready, Stage::Services],
            WaitFor::Nothing | WaitFor::Ready => vec![Stage::Ready],
        };
        let mut port =
            ControlPort::connect(&sockets.control(), self.started + self.limits.hello, &self.context.cancel)
                .and_then(|mut port| port.attach().map(|()| port))
                .map_err(|error| self.ended(error, reached, self.limits.hello))?;
        while !awaited.is_empty() {
            let limit = if reached.is_none() { self.limits.hello } else { self.limits.ready };
            let message = match port.next(self.started + limit) {
                Err(_) if !is_alive() => return Err(BootEnd::Died { reached: phase_name(reached) }),
                other => other.map_err(|error| self.ended(error, reached, limit))?,
            };
            for new in self.hear(message, &mut port, &personality, &mut told)? {
                awaited.retain(|stage| *stage != new.stage);
                // Each once, whatever a guest repeats.
                if !heard.contains(&new.stage) {
                    heard.push(new.stage);
                    self.tell(new, &mut reached);
                }
            }
        }
        Ok(())
    }

    /// Gives a guest that goes on from a saved state its personality. It is ready then: its boot lies behind it. A guest that
    /// does not answer is asked again on a new connection, which it notices by itself.
    pub(super) fn wake(
        &self,
        sockets: &SocketsLayout,
        keys: &VmKeys,
        mut is_alive: impl FnMut() -> bool,
    ) -> Result<(), BootEnd> {
        let end = self.started + WAKE_LIMIT;
        loop {
            let deadline = end.min(Instant::now() + WAKE_PATIENCE);
            match self.wake_once(sockets, keys, &mut is_alive, deadline) {
                Err(BootEnd::TimedOut { .. }) if Instant::now() < end => {}
                other => return other,
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
        let personality = personality(self.vm, keys).map_err(BootEnd::other)?;
        let mut port = ControlPort::connect(&sockets.control(), deadline, &self.context.cancel)
            .and_then(|mut port| port.personalise(personality).map(|()| port))
            .map_err(|error| self.ended(error, None, WAKE_LIMIT))?;
        loop {
            match port.next(deadline) {
                Err(_) if !is_alive() => return Err(BootEnd::Died { reached: phase_name(None) }),
                Ok(GuestMessage::Personalised) => return Ok(()),
                Ok(GuestMessage::Failed { errand: Errand::Personalise, reason }) => {
                    let errand = errand_name(Errand::Personalise);
                    return Err(BootEnd::other(VmError::AgentFailed {
                        vm: self.vm.to_owned(),
                        errand,
                        reason,
                    }));
                }
                Ok(_) => {}
                Err(error) => return Err(self.ended(error, None, WAKE_LIMIT)),
            }
        }
    }

    /// What a message says was reached; answers it where it wants an answer.
    fn hear(
        &self,
        message: GuestMessage,
        port: &mut ControlPort,
        personality: &Personality,
        told: &mut Vec<Errand>,
    ) -> Result<Vec<StageReached>, BootEnd> {
        match message {
            GuestMessage::Hello { personalised, stages, .. } => {
                if !personalised {
                    // The clock is read at the last moment: a boot takes seconds.
                    port.personalise(Personality { time_unix_ns: now_unix_ns(), ..personality.clone() })
                        .map_err(|error| self.ended(error, None, self.limits.ready))?;
                }
                Ok(stages)
            }
            GuestMessage::Stage(stage) => Ok(vec![stage]),
            // Without these, commands will never run: waiting on would only hide it.
            GuestMessage::Failed {
                errand: errand @ (Errand::EnterRoot | Errand::Personalise | Errand::Ssh),
                reason,
            } => Err(BootEnd::other(VmError::AgentFailed {
                vm: self.vm.to_owned(),
                errand: errand_name(errand),
                reason,
            })),
            GuestMessage::Failed { errand, .. } if told.contains(&errand) => Ok(Vec::new()),
            GuestMessage::Failed { errand, reason } => {
                told.push(errand);
                let message =
                    format!("VM `{}`: the agent could not {}: {reason}", self.vm, errand_name(errand));
                self.context.reporter.report(&Event::Warning { message });
                Ok(Vec::new())
            }
            GuestMessage::Personalised
            | GuestMessage::Settled
            | GuestMessage::Synced
            | GuestMessage::PoweringOff => Ok(Vec::new()),
        }
    }

    fn tell(&self, new: StageReached, reached: &mut Option<Stage>) {
        *reached = (*reached).max(Some(new.stage));
        let (vm, phase) = (self.vm.to_owned(), phase_name(Some(new.stage)));
        self.context.reporter.report(&Event::VmPhase { vm, phase, at_ms: millis(self.started.elapsed()) });
    }

    fn ended(&self, error: ControlError, reached: Option<Stage>, limit: Duration) -> BootEnd {
        match error {
            ControlError::Silent | ControlError::Deaf => BootEnd::TimedOut {
                limit,
                is_ready: reached >= Some(Stage::Ready),
                reached: phase_name(reached),
            },
            ControlError::Closed => BootEnd::Died { reached: phase_name(reached) },
            other => BootEnd::other(other),
        }
    }

    /// The end as an error that shows what the guest said last.
    pub(super) fn explain(&self, end: BootEnd, files: &VmLayout) -> VmError {
        let vm = self.vm.to_owned();
        match end {
            BootEnd::TimedOut { limit, is_ready: true, .. } => {
                VmError::ServicesTimedOut { vm, limit_secs: limit.as_secs() }
            }
            BootEnd::TimedOut { limit, reached, is_ready: false } => {
                VmError::BootTimedOut { vm, limit_secs: limit.as_secs(), reached, console: last_words(files) }
            }
            BootEnd::Died { reached } => VmError::BootDied { vm, reached, console: last_words(files) },
            BootEnd::Other(error) => *error,
        }
    }
}

/// The console's and QEMU's last lines, made harmless for a terminal.
fn last_words(files: &VmLayout) -> String {
    const LINES: usize = 8;
    let mut words = Vec::new();
    for log in [files.console_log(), files.qemu_log()] {
        let text = harmless_log(&end_of_log(&log));
        let lines: Vec<String> =
            text.lines().map(str::trim_end).filter(|l| !l.is_empty()).map(String::from).collect();
        words.extend(lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("  | {line}")));
    }
    words.join("\n")
}

fn errand_name(errand: Errand) -> &'static str {
    match errand {
        Errand::Network => "bring up the network",
        Errand::GrowRoot => "grow the root filesystem",
        Errand::EnterRoot => "enter the root filesystem",
        Errand::Personalise => "take its keys and name",
        Errand::Ssh => "start its SSH server",
        Errand::PowerOff => "shut the guest down",
        Errand::Settle => "come to rest",
        Errand::Protocol => "understand castra",
    }
}

pub(super) fn phase_name(stage: Option<Stage>) -> String {
    match stage {
        None => "qemu",
        Some(Stage::Initramfs) => "initramfs",
        Some(Stage::Root) => "root",
        Some(Stage::Ready) => "ready",
        Some(Stage::Services) => "services",
    }
    .into()
}

fn personality(vm: &str, keys: &VmKeys) -> Result<Personality, VmError> {
    // Twice the 256 bits that the kernel's pool is worth.
    let entropy: [u8; 64] = random_bytes().map_err(VmError::Random)?;
    Ok(Personality {
        time_unix_ns: now_unix_ns(),
        entropy: Secret::new(entropy.to_vec()),
        hostname: hostname(vm),
        machine_id: keys.machine_id(),
        host_key: Secret::new(keys.host_private_pem()?),
        authorized_keys: vec![keys.client_public_line()],
    })
}

/// The VM's name as a host name (RFC 1123): labels of letters, digits and inner hyphens.
fn hostname(vm: &str) -> String {
    let label = |label: &str| label.replace('_', "-").trim_matches('-').to_owned();
    let labels: Vec<String> = vm.split('.').map(label).filter(|label| !label.is_empty()).collect();
    labels.join(".")
}

fn now_unix_ns() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(0)
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
