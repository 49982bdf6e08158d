use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

/// How far a boot has come. Stages are reached in this order, each once per boot; only [`Stage::Services`] may come
/// before [`Stage::Ready`], when the personality is sent late (or, for a template, after the boot).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The agent runs in the initramfs.
    Initramfs,
    /// The root filesystem is mounted and the agent has moved into it.
    Root,
    /// Commands can run: the root is real, the network is up, the SSH server listens and has its keys.
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

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum HostMessage {
    /// The host has opened the port: say hello.
    Attach,
    /// Become this VM.
    Personalise(Personality),
    /// Shut the guest down in its own orderly way.
    PowerOff,
    /// Write everything to the disk that is not there yet.
    Sync,
    /// Say who could answer on these ports.
    Listeners {
        /// The ports.
        ports: Vec<ServicePort>,
    },
    /// Come to rest, to be made a template of: once all but the personality is there, forget what can be read again.
    Settle,
    /// Tell the condition of the guest. An agent of before this message fails at [`Errand::Protocol`].
    Inspect,
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
    /// Its protocol.
    pub transport: Transport,
    /// Its number.
    pub port: u16,
}

/// From how far a service can be reached, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Nothing listens, or on addresses of networks inside the guest only.
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
    /// The farthest that any of them can be reached from.
    pub reach: Reach,
}

/// A TCP port of the agent's whose connections are for a service of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Relay {
    /// The agent's port.
    pub port: u16,
    /// The service's.
    pub to: u16,
}

/// What makes one VM different from every other VM of the same image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personality {
    /// The host's wall clock, nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
    /// Fresh random bytes for the guest's kernel.
    pub entropy: Secret,
    /// The host name to take.
    pub hostname: String,
    /// What `/etc/machine-id` is to hold: 32 hexadecimal digits (`machine-id(5)`).
    pub machine_id: String,
    /// The SSH server's private key, OpenSSH PEM.
    pub host_key: Secret,
    /// Public keys that may log in, one OpenSSH line each.
    pub authorized_keys: Vec<String>,
    /// The relays to listen for, and no others; nothing leaves those that there are.
    #[serde(default)]
    pub relays: Option<Vec<Relay>>,
}

/// What the agent says.
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
        /// Whether a [`HostMessage::Personalise`] has been carried out since boot.
        personalised: bool,
        /// Every stage reached so far, in order.
        stages: Vec<StageReached>,
        /// Milliseconds since the guest's kernel started, now: the host relates the guest's times to its own by it. An
        /// agent of before this was told says nothing.
        #[serde(default)]
        uptime_ms: Option<u64>,
        /// When the root filesystem was mounted, in the same milliseconds, if it was and anybody saw it.
        #[serde(default)]
        root_mounted_ms: Option<u64>,
    },
    /// The root filesystem has been mounted, and PID 1 has not moved into it. Not a [`Stage`]: a host that does not know it
    /// passes over it, where it could not read a hello that names it.
    RootMounted {
        /// Milliseconds since the guest's kernel started.
        uptime_ms: u64,
    },
    /// The root has modules of other kernels, and none of the one that runs: said once the root is entered, and before each hello
    /// after that. A host that does not know it passes over it.
    ModulesMissing {
        /// The running kernel's release.
        kernel: String,
        /// The releases that there are modules of.
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
    /// Answer to [`HostMessage::Settle`], as soon as it is true.
    Settled,
    /// Answer to [`HostMessage::Inspect`].
    Inspected(Condition),
    /// Something the agent was to do failed. The VM goes on.
    Failed {
        /// What it was.
        errand: Errand,
        /// The reason, in words.
        reason: String,
    },
}

/// Condition of a guest at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The guest's wall clock, nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
    /// State of its network; nothing if the kernel does not tell.
    pub network: Option<NetworkState>,
}

/// State of the network that SSH comes on, as the guest's kernel has it. A firewall does not show in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Name of the network card; nothing if the kernel has none.
    pub interface: Option<String>,
    /// The interface is set up (`IFF_UP`).
    pub is_up: bool,
    /// The interface has a carrier (`IFF_LOWER_UP`).
    pub has_carrier: bool,
    /// An interface has [`crate::GUEST_ADDRESS`]; it may be a bridge.
    pub has_address: bool,
    /// The kernel has a way to [`crate::GATEWAY_ADDRESS`].
    pub has_route: bool,
}

/// What the agent may fail at, and say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Errand {
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
    /// Understanding what the host said.
    Protocol,
}

/// Bytes that are never printed: `Debug` tells their number only. Base64 on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Keeps these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
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
