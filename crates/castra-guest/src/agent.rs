//! The agent's main loop: starts the tasks, keeps the stages, talks to the host.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use castra_wire::{
    AgentTask, Condition, DiskOrder, Envelope, GuestMessage, HostMessage, PROTOCOL_VERSION,
    Personality, SSH_PORT, Secret, Session, Stage, StageReached,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::cloud_init::Seed;
use crate::control::ControlPort;
use crate::disks::{self, Disks, Origin};
use crate::events::{Event, EventSender, Milestone, reached_now, uptime_ms};
use crate::identity::{Files, Identity};
use crate::kernel_fs::KernelFs;
use crate::legacy::Legacy;
use crate::log::log;
use crate::personality::Random;
use crate::relay::Relays;
use crate::settle::{Calm, Rest};
use crate::ssh::SshServer;
use crate::supervisor::supervise;
use crate::{
    clock, cloud_init, dns, grow, journal, listeners, modules, network, personality, power,
    process, programs, relay, residents, root, run_directory, secrets, services, settle, streams,
    systemd,
};

/// Maximum number of failures that are kept for a host that attaches later.
const KEPT_FAILURES: usize = 16;

/// Time that a VM's first command has the CPU for itself. Work that it does not need waits, since
/// an emulated CPU is slow at whatever it does for the first time.
pub(crate) const FIRST_COMMAND: Duration = Duration::from_secs(1);

/// Pause before a failed port is tried again.
const PORT_PAUSE: Duration = Duration::from_secs(1);

/// Runs the agent for as long as the VM runs, under its supervisor. `randomization` is set if
/// programs have fixed addresses until the root is mounted.
pub(crate) fn run(randomization: Option<String>) -> io::Result<()> {
    let kernel_fs = KernelFs::open()?;
    process::settle(&kernel_fs)?;
    let legacy = Legacy::begin(randomization.as_deref())?;
    supervise(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(conduct(Arc::new(kernel_fs), Arc::new(legacy)))
    })
}

async fn conduct(kernel_fs: Arc<KernelFs>, legacy: Arc<Legacy>) -> io::Result<()> {
    // A shutdown signals every process. The agent must last until its end, and can still be
    // killed.
    let _deaf = [signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    let (events, mut received) = EventSender::new();
    let mut agent = Agent::new(Arc::clone(&kernel_fs), Arc::clone(&legacy), events.clone())?;
    tokio::spawn(clock::keep(Arc::clone(&kernel_fs), agent.clock_set.subscribe()));
    // After a reboot of the guest no host may be attached for a long time.
    let command_line = kernel_fs.proc.read("cmdline").unwrap_or_default();
    if let Err(error) = agent.relays.set(&relay::on_command_line(&command_line)) {
        events.failed(AgentTask::Relay, error);
    }
    agent.resume_personality();
    tokio::spawn(keep_network(Arc::clone(&kernel_fs), events.clone()));
    let (server, gate) = (agent.server.clone(), agent.streams.subscribe());
    tokio::spawn(follow_the_boot(Arc::clone(&kernel_fs), legacy, server, gate, events));
    loop {
        // A port can be unplugged. The agent's other tasks, SSH above all, do not depend on it.
        if let Err(error) = converse(&mut agent, &mut received).await {
            log(format!("the control port failed: {error}"));
        }
        sleep(PORT_PAUSE).await;
    }
}

/// Talks to the host until the port fails.
async fn converse(agent: &mut Agent, received: &mut UnboundedReceiver<Event>) -> io::Result<()> {
    let mut port = ControlPort::open(&agent.kernel_fs).await?;
    loop {
        for answer in agent.next(&mut port, received).await? {
            port.send(&answer)?;
        }
        agent.write_identity_if_due();
    }
}

async fn keep_network(kernel_fs: Arc<KernelFs>, events: EventSender) {
    if let Err(error) = network::keep_up(&kernel_fs, &events).await {
        events.failed(AgentTask::Network, error);
    }
}

/// Runs the consecutive steps of a boot: the root, then the SSH server and the filesystem's size,
/// then the services.
async fn follow_the_boot(
    kernel_fs: Arc<KernelFs>,
    legacy: Arc<Legacy>,
    server: SshServer,
    gate: streams::Gate,
    events: EventSender,
) {
    let mut seed = Seed::read();
    seed.place_early();
    let on_mounted = || {
        legacy.restore_randomization(&kernel_fs);
        events.reached(Milestone::RootMounted);
    };
    let on_change = || seed.place_early();
    let entered = root::enter(&kernel_fs, legacy.initramfs, on_change, on_mounted).await;
    // If the mount was not seen.
    legacy.restore_randomization(&kernel_fs);
    if let Err(error) = entered {
        return events.failed(AgentTask::EnterRoot, error);
    }
    // Before init, which has just been started, gets to its services.
    residents::remove(&kernel_fs);
    disks::link_all(&kernel_fs);
    events.reached(Milestone::Root);
    let is_systemd = systemd::is_init(&kernel_fs);
    prepare_services(is_systemd, seed, &events);
    if let Err(error) = streams::start(Arc::clone(&kernel_fs), gate) {
        log(format!("cannot serve the stream ports: {error}"));
    }
    tokio::spawn(serve_ssh(server, events.clone()));
    tokio::spawn(grow::keep_size(Arc::clone(&kernel_fs), events.clone()));
    if is_systemd {
        systemd::follow(&events).await;
    } else {
        events.reached(Milestone::Usable);
        services::wait_until_up(&kernel_fs).await;
    }
    if let Some(state) = cloud_init::state().filter(|state| !state.errors.is_empty()) {
        let text = format!("cloud-init reports errors: {}", state.errors.join("; "));
        events.noticed(AgentTask::FollowBoot, text);
    }
    events.reached(Milestone::Services);
    if let Err(error) = dns::complete(Path::new("/"), run_directory::mounted()) {
        events.failed(AgentTask::Network, format!("DNS: {error}"));
    }
}

/// Prepares what the services of the system find when they start.
fn prepare_services(is_systemd: bool, mut seed: Seed, events: &EventSender) {
    let run = run_directory::mounted();
    if let Err(error) = dns::provide(Path::new("/"), run) {
        events.failed(AgentTask::Network, format!("DNS: {error}"));
    }
    let Some(run) = run else { return };
    // If the initramfs has not mounted it.
    seed.place(run);
    if let Err(error) = run_directory::prepare_network_manager(run) {
        events.failed(AgentTask::Network, format!("NetworkManager: {error}"));
    }
    if is_systemd {
        secrets::renew_during_boot(run);
    }
}

async fn serve_ssh(server: SshServer, events: EventSender) {
    let served = async {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, SSH_PORT)).await?;
        events.reached(Milestone::Ssh);
        server.serve(listener).await
    };
    if let Err(error) = served.await {
        events.failed(AgentTask::Ssh, error);
    }
}

/// Progress of a guest that becomes a layer of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Provisioning {
    /// The boot is not over.
    Booting,
    /// Programs can run.
    Open,
}

/// State of the agent.
struct Agent {
    kernel_fs: Arc<KernelFs>,
    legacy: Arc<Legacy>,
    random: Random,
    server: SshServer,
    /// Session of the host that was heard last.
    session: Option<Session>,
    stages: Vec<StageReached>,
    root_mounted_ms: Option<u64>,
    milestones: Vec<Milestone>,
    identity: Option<Identity>,
    /// Set while the root's files do not yet have the VM's identity.
    is_identity_due: bool,
    failures: Vec<GuestMessage>,
    events: EventSender,
    /// Opens the stream ports' gate.
    streams: watch::Sender<bool>,
    /// Informs the clock's task that the host has set the clock.
    clock_set: watch::Sender<i64>,
    powering_off: bool,
    /// Set while the host waits for the guest to come to rest and that has not begun.
    is_to_settle: bool,
    /// Set if the guest becomes a layer of a disk, in which programs run and which is never a VM.
    provisioning: Option<Provisioning>,
    /// State in which the template of this VM was saved, until the VM has its identity.
    rest: Option<Rest>,
    relays: Relays,
    disks: Disks,
}

impl Agent {
    fn new(kernel_fs: Arc<KernelFs>, legacy: Arc<Legacy>, events: EventSender) -> io::Result<Self> {
        Ok(Self {
            random: Random::open(&kernel_fs)?,
            kernel_fs,
            legacy,
            server: SshServer::new(),
            session: None,
            stages: vec![reached_now(Stage::Initramfs)],
            root_mounted_ms: None,
            milestones: Vec::new(),
            identity: None,
            is_identity_due: false,
            failures: Vec::new(),
            events,
            streams: watch::Sender::new(false),
            clock_set: watch::Sender::new(0),
            powering_off: false,
            is_to_settle: false,
            provisioning: None,
            rest: None,
            relays: Relays::default(),
            disks: Disks::default(),
        })
    }

    /// Waits for the next event and returns the messages that the host is to receive about it.
    async fn next(
        &mut self,
        port: &mut ControlPort,
        received: &mut UnboundedReceiver<Event>,
    ) -> io::Result<Vec<Envelope<GuestMessage>>> {
        let answers = tokio::select! {
            envelope = port.receive() => match envelope? {
                Ok(Envelope { session, message }) => {
                    self.session = session;
                    self.obey(message)
                }
                Err(error) => vec![failed(AgentTask::Protocol, error)],
            },
            Some(received) = received.recv() => match received {
                // The host that asked may be gone, and another one may have asked since.
                Event::Synced(session) => {
                    return Ok(vec![Envelope { session, message: GuestMessage::Synced }]);
                }
                Event::RootGrown(session, growth) => {
                    return Ok(vec![Envelope { session, message: GuestMessage::RootGrown(growth) }]);
                }
                Event::Settled(rest) => self.settled(rest),
                Event::Reached(milestone, uptime_ms) => self.reach(milestone, uptime_ms),
                Event::Noticed(task, text) => vec![GuestMessage::Notice { task, text }],
                Event::Failed(task, reason) => self.fail(task, reason),
            },
        };
        let session = self.session;
        Ok(answers.into_iter().map(|message| Envelope { session, message }).collect())
    }

    fn obey(&mut self, message: HostMessage) -> Vec<GuestMessage> {
        match message {
            HostMessage::Attach => self.hello(),
            HostMessage::Personalise(personality) => self.personalise(personality),
            HostMessage::PowerOff => self.power_off(),
            HostMessage::Sync => self.sync(),
            HostMessage::Settle => self.settle(),
            HostMessage::Provision { time_unix_ns, entropy } => {
                self.provision(time_unix_ns, &entropy)
            }
            HostMessage::Inspect => vec![self.condition()],
            HostMessage::GrowRoot { disk_bytes } => self.grow_root(disk_bytes),
            HostMessage::Listeners { ports } => {
                vec![GuestMessage::Listeners {
                    listeners: listeners::listeners(&ports, &self.kernel_fs),
                }]
            }
        }
    }

    fn settled(&mut self, rest: Rest) -> Vec<GuestMessage> {
        self.rest = Some(rest);
        vec![GuestMessage::Settled]
    }

    fn fail(&mut self, task: AgentTask, reason: String) -> Vec<GuestMessage> {
        let failure = failed(task, reason);
        if self.failures.len() < KEPT_FAILURES {
            self.failures.push(failure.clone());
        }
        vec![failure]
    }

    fn hello(&self) -> Vec<GuestMessage> {
        let hello = GuestMessage::Hello {
            protocol: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel_release(),
            personalised: self.identity.is_some(),
            stages: self.stages.clone(),
            uptime_ms: Some(uptime_ms()),
            root_mounted_ms: self.root_mounted_ms,
        };
        let is_of_disks = |failure: &GuestMessage| {
            matches!(failure, GuestMessage::Failed { task: AgentTask::Disks, .. })
        };
        let (of_disks, others): (Vec<_>, Vec<_>) =
            self.failures.iter().cloned().partition(is_of_disks);
        // First, since a host that waits for no further stage reads nothing after the hello.
        self.missing_modules().into_iter().chain(of_disks).chain([hello]).chain(others).collect()
    }

    /// Returns a message if the running kernel's modules are missing. The answer may change:
    /// packages are installed and removed while the guest runs.
    fn missing_modules(&self) -> Option<GuestMessage> {
        // A kernel without modules has no such file.
        if !self.milestones.contains(&Milestone::Root) || !self.kernel_fs.proc.has("modules") {
            return None;
        }
        let kernel = kernel_release();
        let installed = modules::of_other_kernels(Path::new(modules::DIRECTORY), &kernel)?;
        Some(GuestMessage::ModulesMissing { kernel, installed })
    }

    /// Applies the personality of an agent that has ended.
    fn resume_personality(&mut self) {
        if let Some(personality) = self.legacy.personality() {
            // No host has asked for it, and the next one asks for the stages.
            drop(self.apply(personality));
        }
    }

    /// Applies a personality, and leaves it to the next agent.
    fn personalise(&mut self, personality: Personality) -> Vec<GuestMessage> {
        self.legacy.forget();
        let (legacy, kept) = (Arc::clone(&self.legacy), personality.clone());
        after_first_command(move || legacy.keep(kept));
        self.apply(personality)
    }

    fn apply(&mut self, mut personality: Personality) -> Vec<GuestMessage> {
        let relays = personality.relays.take();
        let disks = personality.disks.take().unwrap_or_default();
        match personality::apply(personality, &self.random, &self.server) {
            Ok(identity) => self.identity = Some(identity),
            Err(error) => return vec![failed(AgentTask::Personalise, error)],
        }
        self.clock_set.send_replace(clock::since_boot_ns());
        self.use_keys_soon();
        let relayed = relays.map_or(Ok(()), |relays| self.relays.set(&relays));
        self.is_identity_due = true;
        self.attend_disks(disks);
        let mut answers = vec![GuestMessage::Personalised];
        answers.extend(relayed.err().map(|error| failed(AgentTask::Relay, error)));
        answers.extend(self.ready_if_all_is_there());
        answers
    }

    /// Carries out the host's orders for disks. Before the root is entered, they wait for those of
    /// the kernel's command line, which are the same.
    fn attend_disks(&mut self, orders: Vec<DiskOrder>) {
        if !self.milestones.contains(&Milestone::Root) {
            return;
        }
        let origin = if self.rest.is_some() { Origin::Template } else { Origin::Boot };
        self.disks.attend(orders, origin, &self.kernel_fs, &self.events);
    }

    /// Ends the calm in which a template was saved.
    fn end_soon(&self, calm: Calm) {
        let kernel_fs = Arc::clone(&self.kernel_fs);
        after_first_command(move || {
            calm.end(&kernel_fs);
            tokio::spawn(programs::give_up_spare());
        });
    }

    /// Has the SSH server parse its keys while nothing waits for it.
    fn use_keys_soon(&self) {
        let (server, events) = (self.server.clone(), self.events.clone());
        after_first_command(move || {
            if let Err(error) = server.use_keys() {
                events.failed(AgentTask::Ssh, error);
            }
        });
    }

    fn reach(&mut self, milestone: Milestone, uptime_ms: u64) -> Vec<GuestMessage> {
        self.milestones.push(milestone);
        match milestone {
            Milestone::Root => self.attend_disks(disks::ordered_by_kernel(&self.kernel_fs)),
            Milestone::Disks => self.disks.end(),
            _ => {}
        }
        if milestone == Milestone::RootMounted {
            self.root_mounted_ms = Some(uptime_ms);
            return vec![GuestMessage::RootMounted { uptime_ms }];
        }
        let stage = |stage| Some(StageReached { stage, uptime_ms });
        let reached = match milestone {
            Milestone::Root => stage(Stage::Root),
            Milestone::Services => stage(Stage::Services),
            Milestone::RootMounted
            | Milestone::Usable
            | Milestone::Network
            | Milestone::Size
            | Milestone::Ssh
            | Milestone::Disks => None,
        };
        if matches!(milestone, Milestone::Root | Milestone::Services) {
            self.is_identity_due = true;
        }
        self.settle_if_all_is_there();
        let mut answers: Vec<_> = reached.map(|stage| self.record(stage)).into_iter().collect();
        answers.extend(self.open_if_all_is_there());
        if milestone == Milestone::Root {
            answers.extend(self.missing_modules());
        }
        answers.extend(self.ready_if_all_is_there());
        answers
    }

    fn ready_if_all_is_there(&mut self) -> Option<GuestMessage> {
        let all = [
            Milestone::Root,
            Milestone::Usable,
            Milestone::Network,
            Milestone::Size,
            Milestone::Ssh,
        ];
        let said = self.stages.iter().any(|reached| reached.stage == Stage::Ready);
        let ready = all.iter().all(|milestone| self.milestones.contains(milestone))
            && self.identity.is_some()
            && self.disks.are_done();
        (ready && !said).then(|| self.record(reached_now(Stage::Ready)))
    }

    fn record(&mut self, stage: StageReached) -> GuestMessage {
        self.stages.push(stage);
        GuestMessage::Stage(stage)
    }

    /// Writes the host name, the machine ID and `/etc/hosts`, once the root is entered.
    ///
    /// The image's scripts set the name from `/etc/hostname` during boot: either they find the new
    /// one there, or they have read the old one and the name is set once more when they are done.
    ///
    /// The host gets its answer before that: writing files for the first time costs an emulated CPU
    /// as much as everything else. No command can run in between, since one thread does it all.
    fn write_identity_if_due(&mut self) {
        if !std::mem::take(&mut self.is_identity_due) {
            return;
        }
        let Some(identity) =
            self.identity.as_ref().filter(|_| self.milestones.contains(&Milestone::Root))
        else {
            return;
        };
        let (files, is_sshd_due, is_restored) = match self.rest.take() {
            Some(Rest { had_sshd, identity_files, calm }) => {
                self.end_soon(calm);
                (identity_files, had_sshd, true)
            }
            None => (Files::by_name(), false, false),
        };
        let other = files.write(identity);
        let is_a_copy = other.is_some();
        if let Some(other) = other.filter(|_| is_restored) {
            let own = identity.machine_id.clone();
            after_first_command(move || journal::move_to(&other, &own));
        }
        let _ = personality::set_hostname(&identity.hostname);
        self.streams.send_replace(true);
        self.renew_secrets(is_a_copy, is_sshd_due);
    }

    /// Ensures that no two VMs share secrets: a copy removes those of the VM or image that it was
    /// made from. Until the services are up they create missing ones by themselves; after that,
    /// they are created here.
    fn renew_secrets(&self, is_a_copy: bool, is_sshd_due: bool) {
        let are_services_up = self.milestones.contains(&Milestone::Services);
        if !is_a_copy && !are_services_up {
            return;
        }
        let kernel_fs = Arc::clone(&self.kernel_fs);
        tokio::spawn(async move {
            let had_sshd = is_a_copy && blocking(move || secrets::forget(&kernel_fs)).await;
            if are_services_up {
                sleep(FIRST_COMMAND).await;
                blocking(move || secrets::renew(is_sshd_due || had_sshd)).await;
            }
        });
    }

    fn condition(&self) -> GuestMessage {
        let network = network::state(&self.kernel_fs).ok();
        let disk_faults = self.disks.faults(&self.kernel_fs);
        // Last, since the host compares it with its own clock.
        let cloud_init = cloud_init::state();
        let time_unix_ns = clock::unix_ns();
        GuestMessage::Inspected(Condition { network, cloud_init, disk_faults, time_unix_ns })
    }

    /// Writes everything to the disk, on a thread of its own, since a slow disk must not block the
    /// main loop.
    fn sync(&self) -> Vec<GuestMessage> {
        let (events, session) = (self.events.clone(), self.session);
        tokio::task::spawn_blocking(move || {
            rustix::fs::sync();
            events.synced(session);
        });
        Vec::new()
    }

    fn grow_root(&self, disk_bytes: u64) -> Vec<GuestMessage> {
        let (kernel_fs, events) = (Arc::clone(&self.kernel_fs), self.events.clone());
        let session = self.session;
        tokio::spawn(async move {
            events.root_grown(session, grow::to_disk(kernel_fs, disk_bytes).await);
        });
        Vec::new()
    }

    fn settle(&mut self) -> Vec<GuestMessage> {
        if self.identity.is_some() {
            return vec![failed(AgentTask::Settle, "this VM already has a personality")];
        }
        self.is_to_settle = true;
        self.settle_if_all_is_there();
        Vec::new()
    }

    /// Returns `true` once the guest's boot is over.
    fn has_booted(&self) -> bool {
        let all = [
            Milestone::Root,
            Milestone::Network,
            Milestone::Size,
            Milestone::Ssh,
            Milestone::Services,
        ];
        all.iter().all(|milestone| self.milestones.contains(milestone))
    }

    fn settle_if_all_is_there(&mut self) {
        if !self.is_to_settle || !self.has_booted() {
            return;
        }
        self.is_to_settle = false;
        let (kernel_fs, events) = (Arc::clone(&self.kernel_fs), self.events.clone());
        tokio::task::spawn_blocking(move || match settle::come_to_rest(&kernel_fs) {
            Ok(rest) => events.settled(rest),
            Err(error) => events.failed(AgentTask::Settle, error),
        });
    }

    /// Begins to let programs run in a guest that has no personality, nor will get one. The SSH
    /// server accepts no key.
    fn provision(&mut self, time_unix_ns: u64, entropy: &Secret) -> Vec<GuestMessage> {
        if self.identity.is_some() {
            return vec![failed(AgentTask::Provision, "this VM already has a personality")];
        }
        if let Err(error) = personality::wake(&self.random, time_unix_ns, entropy) {
            return vec![failed(AgentTask::Provision, error)];
        }
        self.clock_set.send_replace(clock::since_boot_ns());
        self.provisioning = Some(Provisioning::Booting);
        self.open_if_all_is_there().into_iter().collect()
    }

    fn open_if_all_is_there(&mut self) -> Option<GuestMessage> {
        if self.provisioning != Some(Provisioning::Booting) || !self.has_booted() {
            return None;
        }
        self.provisioning = Some(Provisioning::Open);
        self.streams.send_replace(true);
        Some(GuestMessage::Provisionable)
    }

    fn power_off(&mut self) -> Vec<GuestMessage> {
        if !std::mem::replace(&mut self.powering_off, true) {
            let (kernel_fs, events) = (Arc::clone(&self.kernel_fs), self.events.clone());
            let is_layer = self.provisioning.is_some();
            tokio::task::spawn_blocking(move || {
                let ended = match is_layer {
                    true => power::power_off_without_secrets(&kernel_fs),
                    false => power::power_off(&kernel_fs),
                };
                if let Err(error) = ended {
                    events.failed(AgentTask::PowerOff, error);
                }
            });
        }
        vec![GuestMessage::PoweringOff]
    }
}

/// Runs `work` once the first command has had its time.
fn after_first_command(work: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        sleep(FIRST_COMMAND).await;
        work();
    });
}

/// Runs `work` on a thread of its own.
async fn blocking<T: Default + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // Fails only if the agent ends.
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn failed(task: AgentTask, reason: impl ToString) -> GuestMessage {
    GuestMessage::Failed { task, reason: reason.to_string() }
}
