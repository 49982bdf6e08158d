//! The guest's end of the control port.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use castra_wire::{
    AgentTask, Condition, DiskFault, Envelope, GuestMessage, HostMessage, Lines, Listener,
    NetworkState, PROTOCOL_VERSION, Reach, Stage, StageReached, decode, encode,
};

use crate::machine::Machine;
use crate::qmp::listener;

/// Milliseconds since a boot that never was.
const UPTIME_MS: u64 = 1;

/// Serves one host after another.
pub(crate) fn serve(machine: &Machine) {
    let listener = listener(machine.arguments.control);
    let mut agent = Agent { machine, is_personalised: false, is_awake: false };
    for stream in listener.incoming().flatten() {
        agent.converse(stream);
    }
}

struct Agent<'a> {
    machine: &'a Machine,
    is_personalised: bool,
    is_awake: bool,
}

impl Agent<'_> {
    fn is_silent(&self) -> bool {
        let Machine { behaviour, arguments, .. } = self.machine;
        behaviour.has("guest-silent") || behaviour.has("agent-gone") || behaviour.panics(arguments)
    }

    /// Answers until the host disconnects.
    fn converse(&mut self, mut stream: UnixStream) {
        let mut lines = Lines::new();
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(length) => lines.push(&chunk[..length]),
            }
            self.machine.write();
            self.machine.until_running();
            if !self.is_awake {
                let slow = self.machine.behaviour.number("guest-slow").unwrap_or(0);
                thread::sleep(Duration::from_millis(slow));
                self.is_awake = true;
            }
            while let Some(line) = lines.next_line() {
                let (session, answers) = match line.and_then(decode::<Envelope<HostMessage>>) {
                    Ok(_) | Err(_) if self.is_silent() => (None, Vec::new()),
                    Ok(Envelope { session, message }) => (session, self.answer(message)),
                    Err(_) => (None, Vec::new()),
                };
                for message in answers.iter().cloned() {
                    if stream.write_all(&encode(&Envelope { session, message })).is_err() {
                        return;
                    }
                }
                if answers.contains(&GuestMessage::PoweringOff)
                    && !self.machine.behaviour.has("ignores-powerdown")
                {
                    self.machine.end("by its guest");
                }
            }
        }
    }

    fn missing_modules(&self) -> Option<GuestMessage> {
        let installed = vec!["6.12.9-0-virt".to_owned()];
        let missing =
            GuestMessage::ModulesMissing { kernel: "6.12.1-0-virt".to_owned(), installed };
        self.machine.behaviour.has("modules-gone").then_some(missing)
    }

    fn left_to_the_user(&self) -> Vec<GuestMessage> {
        let mut messages = Vec::new();
        if self.machine.behaviour.has("volume-small") {
            let text = "the volume is small".to_owned();
            let notice = GuestMessage::Notice { task: AgentTask::GrowRoot, text };
            // A guest may repeat itself.
            messages.extend([notice.clone(), notice]);
        }
        if self.machine.behaviour.has("emergency") {
            let reason = "the system is in emergency mode".to_owned();
            messages.push(GuestMessage::Failed { task: AgentTask::FollowBoot, reason });
        }
        messages.extend(self.disk_failure());
        messages
    }

    fn disk_fault(&self) -> Option<DiskFault> {
        let (name, reason) = ("data".to_owned(), "is not mounted on /data: it has LUKS".to_owned());
        self.machine.behaviour.has("disk-foreign").then_some(DiskFault { name, reason })
    }

    fn disk_failure(&self) -> Option<GuestMessage> {
        let DiskFault { name, reason } = self.disk_fault()?;
        let reason = format!("disk `{name}` {reason}");
        Some(GuestMessage::Failed { task: AgentTask::Disks, reason })
    }

    fn condition(&self) -> Condition {
        let is_up = !self.machine.behaviour.has("link-down");
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let behind =
            Duration::from_secs(self.machine.behaviour.number("clock-behind").unwrap_or(0));
        Condition {
            time_unix_ns: u64::try_from((since_1970 - behind).as_nanos()).unwrap_or_default(),
            network: Some(NetworkState {
                interface: Some("eth0".into()),
                is_up,
                has_carrier: is_up,
                has_address: true,
                has_route: is_up,
            }),
            cloud_init: None,
            disk_faults: self.disk_fault().into_iter().collect(),
        }
    }

    fn answer(&mut self, message: HostMessage) -> Vec<GuestMessage> {
        let reached = |stage| StageReached { stage, uptime_ms: UPTIME_MS };
        let late = [Stage::Ready, Stage::Services].map(reached);
        match message {
            HostMessage::Attach => {
                let mut stages = [Stage::Initramfs, Stage::Root].map(reached).to_vec();
                stages.extend(late.into_iter().filter(|_| self.is_personalised));
                let hello = GuestMessage::Hello {
                    protocol: PROTOCOL_VERSION,
                    agent_version: "0".into(),
                    kernel: "0".into(),
                    personalised: self.is_personalised,
                    stages,
                    uptime_ms: Some(UPTIME_MS),
                    root_mounted_ms: None,
                };
                let again = self.disk_failure().filter(|_| self.is_personalised);
                self.missing_modules().into_iter().chain(again).chain([hello]).collect()
            }
            HostMessage::Personalise(_) => {
                self.is_personalised = true;
                let late = late.into_iter().map(GuestMessage::Stage);
                [GuestMessage::Personalised]
                    .into_iter()
                    .chain(self.left_to_the_user())
                    .chain(late)
                    .collect()
            }
            HostMessage::PowerOff => vec![GuestMessage::PoweringOff],
            HostMessage::Sync => vec![GuestMessage::Synced],
            HostMessage::Settle => vec![GuestMessage::Settled],
            HostMessage::Provision { .. } => vec![GuestMessage::Provisionable],
            HostMessage::Inspect if self.machine.behaviour.has("guest-old") => {
                let reason = "unknown variant `inspect`".into();
                vec![GuestMessage::Failed { task: AgentTask::Protocol, reason }]
            }
            HostMessage::Inspect => vec![GuestMessage::Inspected(self.condition())],
            // As an agent of an earlier castra.
            HostMessage::GrowRoot { .. } => {
                let reason = "unknown variant `grow-root`".into();
                vec![GuestMessage::Failed { task: AgentTask::Protocol, reason }]
            }
            HostMessage::Listeners { ports } => {
                let reach = if self.machine.behaviour.has("loopback-only") {
                    Reach::Loopback
                } else {
                    Reach::Nothing
                };
                let listeners = ports.into_iter().map(|port| Listener { port, reach }).collect();
                vec![GuestMessage::Listeners { listeners }]
            }
        }
    }
}
