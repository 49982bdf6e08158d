use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::disk::{DiskFault, DiskOrder};

/// Progress of a boot. Stages are reached in this order, each once per boot; only
/// [`Stage::Services`] may precede [`Stage::Ready`], when the personality is sent late (or, for a
/// template, after the boot).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The agent runs in the initramfs.
    Initramfs,
    /// The root filesystem is mounted and the agent has moved into it.
    Root,
    /// Commands can run: the agent is in the real root, the local filesystems are mounted, the
    /// network is up, and the SSH server listens and has its keys.
    Ready,
    /// The guest's own last service is up (its `getty` runs, or its service manager says so).
    Services,
}

/// A stage and when it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReached {
    /// The stage.
    pub stage: Stage,
    /// Milliseconds since the guest's kernel started (`CLOCK_BOOTTIME`).
    pub uptime_ms: u64,
}

/// A request from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum HostMessage {
    /// Asks for a hello, now that the host has opened the port.
    Attach,
    /// Makes the guest this VM: sets its clock, name, machine ID and keys.
    Personalise(Personality),
    /// Shuts the guest down through its own service manager.
    PowerOff,
    /// Writes all unwritten data to the disk.
    Sync,
    /// Asks which of these ports have a service that could answer.
    Listeners {
        /// The ports.
        ports: Vec<ServicePort>,
    },
    /// Brings the guest to rest so that it can be saved as a template: once everything but the
    /// personality is in place, drops caches that can be read again.
    Settle,
    /// Lets programs run in a guest that is to become a layer of a disk, and never a VM: once all
    /// services are up, without a personality and closed to SSH. Such a guest removes what no two
    /// VMs may share before it powers off.
    Provision {
        /// The host's wall clock, nanoseconds since the Unix epoch.
        time_unix_ns: u64,
        /// Fresh random bytes for the guest's kernel.
        entropy: Secret,
    },
    /// Asks for the condition of the guest. An agent that predates this message fails with
    /// [`AgentTask::Protocol`].
    Inspect,
    /// Grows the root filesystem, and the partition that it is on, now that the disk has this size.
    /// An agent that predates this message fails with [`AgentTask::Protocol`].
    GrowRoot {
        /// Size of the disk, which the guest's kernel may not know yet.
        disk_bytes: u64,
    },
}

impl HostMessage {
    /// Returns the message's `type`, for a log that must not contain its contents.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Personalise(_) => "personalise",
            Self::PowerOff => "power-off",
            Self::Sync => "sync",
            Self::Listeners { .. } => "listeners",
            Self::Settle => "settle",
            Self::Provision { .. } => "provision",
            Self::GrowRoot { .. } => "grow-root",
            Self::Inspect => "inspect",
        }
    }
}

/// Protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServicePort {
    /// Protocol of the port.
    pub transport: Transport,
    /// Port number.
    pub port: u16,
}

/// Distance from which a service can be reached, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Not reachable: nothing listens, or only on addresses of networks inside the guest.
    Nothing,
    /// From the guest itself: it listens on a loopback address.
    Loopback,
    /// From the guest's network.
    Network,
}

/// A port of the guest and the services behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The port.
    #[serde(flatten)]
    pub port: ServicePort,
    /// Farthest reach of any service on the port.
    pub reach: Reach,
}

/// A TCP port on which the agent accepts connections for a service of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Relay {
    /// Port on which the agent listens.
    pub port: u16,
    /// Port of the service.
    pub to: u16,
}

/// Everything that makes one VM different from every other VM of the same image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personality {
    /// The host's wall clock, nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
    /// Fresh random bytes for the guest's kernel.
    pub entropy: Secret,
    /// Host name to set.
    pub hostname: String,
    /// Content for `/etc/machine-id`: 32 hexadecimal digits (`machine-id(5)`).
    pub machine_id: String,
    /// The SSH server's private key, OpenSSH PEM.
    pub host_key: Secret,
    /// Public keys that may log in, one OpenSSH line each.
    pub authorized_keys: Vec<String>,
    /// The complete set of relays to listen for; `None` leaves the existing ones unchanged.
    #[serde(default)]
    pub relays: Option<Vec<Relay>>,
    /// The complete set of data disks; `None` leaves all as they are. Commands do not run before
    /// those are mounted that can be. Older agents ignore it.
    #[serde(default)]
    pub disks: Option<Vec<DiskOrder>>,
}

/// A message from the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum GuestMessage {
    /// Answer to [`HostMessage::Attach`].
    Hello {
        /// [`crate::PROTOCOL_VERSION`] of the agent.
        protocol: u32,
        /// The agent's own version.
        agent_version: String,
        /// The guest kernel's release, as `uname -r` prints it.
        kernel: String,
        /// Set once a [`HostMessage::Personalise`] has been carried out in this boot.
        personalised: bool,
        /// Every stage reached so far, in order.
        stages: Vec<StageReached>,
        /// Milliseconds from the start of the guest's kernel to now, from which the host relates
        /// the guest's times to its own. Older agents do not send it.
        #[serde(default)]
        uptime_ms: Option<u64>,
        /// Time at which the root filesystem was mounted, in milliseconds since the kernel's start;
        /// `None` if it is not mounted yet or the mount was not observed.
        #[serde(default)]
        root_mounted_ms: Option<u64>,
    },
    /// The root filesystem has been mounted, and PID 1 has not moved into it yet. Not a [`Stage`]:
    /// a host that does not know this message ignores it, whereas it could not parse a hello with
    /// an unknown stage.
    RootMounted {
        /// Milliseconds since the guest's kernel started.
        uptime_ms: u64,
    },
    /// The root has modules for other kernels but none for the running one. Sent once the root is
    /// entered, and before each hello after that. A host that does not know this message ignores
    /// it.
    ModulesMissing {
        /// The running kernel's release.
        kernel: String,
        /// Releases for which there are modules.
        installed: Vec<String>,
    },
    /// A further stage has been reached.
    Stage(StageReached),
    /// Answer to [`HostMessage::Personalise`].
    Personalised,
    /// Answer to [`HostMessage::PowerOff`]: the guest's own shutdown has been started.
    PoweringOff,
    /// Answer to [`HostMessage::Sync`], once it is done.
    Synced,
    /// Answer to [`HostMessage::Listeners`], in the order of its ports.
    Listeners {
        /// Reach of the service there.
        listeners: Vec<Listener>,
    },
    /// Answer to [`HostMessage::Settle`], sent as soon as the guest is at rest.
    Settled,
    /// Answer to [`HostMessage::Provision`], sent as soon as programs can run.
    Provisionable,
    /// Answer to [`HostMessage::Inspect`].
    Inspected(Condition),
    /// Answer to [`HostMessage::GrowRoot`].
    RootGrown(RootGrowth),
    /// One of the agent's tasks leaves something to the user. A host that does not know this
    /// message ignores it.
    Notice {
        /// The task.
        task: AgentTask,
        /// A sentence without its end, beginning in lower case.
        text: String,
    },
    /// One of the agent's tasks failed. The VM keeps running.
    Failed {
        /// The task.
        #[serde(rename = "errand")]
        task: AgentTask,
        /// The reason, as text.
        reason: String,
    },
}

impl GuestMessage {
    /// Returns the message's `type`, for a log that must not contain its contents.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::RootMounted { .. } => "root-mounted",
            Self::ModulesMissing { .. } => "modules-missing",
            Self::Stage(_) => "stage",
            Self::Personalised => "personalised",
            Self::PoweringOff => "powering-off",
            Self::Synced => "synced",
            Self::Listeners { .. } => "listeners",
            Self::Settled => "settled",
            Self::Provisionable => "provisionable",
            Self::Inspected(_) => "inspected",
            Self::RootGrown(_) => "root-grown",
            Self::Notice { .. } => "notice",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Outcome of the growth of a guest's root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum RootGrowth {
    /// The filesystem is as large as it can be.
    Done {
        /// Size of the filesystem, of which a part is its own tables.
        root_bytes: u64,
        /// Steps that are left to the user, as a sentence without its end.
        left_to_do: Option<String>,
    },
    /// The filesystem has not grown.
    Failed {
        /// The reason, as text.
        reason: String,
    },
}

/// Condition of a guest at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The guest's wall clock, nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
    /// State of the guest's network; `None` if the kernel does not report it.
    pub network: Option<NetworkState>,
    /// State of cloud-init; `None` if it was given no data by the host, or by an older agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInitState>,
    /// Data disks that are not mounted as they were ordered. Older agents do not send them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk_faults: Vec<DiskFault>,
}

/// State of cloud-init in a guest to which the host has brought data for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudInitState {
    /// All that it does in a boot is done.
    pub is_done: bool,
    /// Errors of this boot, as it has written them.
    pub errors: Vec<String>,
}

/// State of the network through which SSH connects, as reported by the guest's kernel. A firewall
/// does not show in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Name of the network card; `None` if the kernel has none.
    pub interface: Option<String>,
    /// The interface is set up (`IFF_UP`).
    pub is_up: bool,
    /// The interface has a carrier (`IFF_LOWER_UP`).
    pub has_carrier: bool,
    /// An interface has [`crate::GUEST_ADDRESS`]; it may be a bridge.
    pub has_address: bool,
    /// The kernel has a route to [`crate::GATEWAY_ADDRESS`].
    pub has_route: bool,
}

/// A task of the agent whose failure it reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentTask {
    /// Bringing up the network.
    Network,
    /// Growing the root filesystem to the size of its disk.
    GrowRoot,
    /// Moving from the initramfs into the real root.
    EnterRoot,
    /// Carrying out [`HostMessage::Personalise`].
    Personalise,
    /// Starting the SSH server.
    Ssh,
    /// Listening for forwarded ports.
    Relay,
    /// Starting the guest's shutdown.
    PowerOff,
    /// Carrying out [`HostMessage::Settle`].
    Settle,
    /// Carrying out [`HostMessage::Provision`].
    Provision,
    /// Following the boot of the guest's own init.
    FollowBoot,
    /// Mounting data disks. Hosts of earlier versions do not know it, and ignore the message.
    Disks,
    /// Parsing a message from the host.
    Protocol,
}

/// Bytes that are never printed: `Debug` shows only their number. Base64 on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps secret bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}
