//! The host's side of the guest: injecting the agent, talking to it, and logging in.

mod companion;
mod console;
mod control;
mod cpio;
mod initrd;
mod keys;
mod login;
mod modules;
mod mounts;
mod network;
mod ports;
mod proxy;
mod seed;
pub mod session;
pub mod ssh;
mod stream_port;

pub use castra_wire::{CloudInitState, Reach, SSH_PORT};
pub use companion::{Companion, accompany};
pub use console::{ConsoleEnd, ConsoleOutcome, converse};
pub use control::{ControlError, ControlPort};
pub use initrd::{AGENT, AGENT_PATH, InitrdError, append_agent, modules_archive, write_with_agent};
pub use keys::{KeyError, VmKeys, server_pin};
pub use login::{CREDENTIALS_SYSTEMD, oem_strings, seed_disk};
pub use modules::{EarlyModule, early_modules};
pub use mounts::{GuestPathProblem, MAX_MOUNTS, Mount, MountState, is_inside};
pub(crate) use mounts::{OF_KERNEL, is_of_kernel};
pub use network::{
    AgentSocket, Inspection, NetworkDown, NetworkFault, NetworkReport, NoInspection, inspect,
    is_ssh_silent,
};
pub use ports::{
    AutoPlan, LiveForward, LiveOrigin, LivePort, LivePorts, LiveState, MAX_ADDED_FORWARDS, PortPlan,
};
pub(crate) use proxy::{
    for_guest as proxies_for_guest, with_credentials as proxy_with_credentials,
};
pub use seed::{Seed, TEMPLATE_HOSTNAME};
pub use stream_port::{HeldPorts, StreamPort, StreamPorts, Streams, TakenPort};
