//! Virtual machines: every operation on a VM, from its plan to its record.
//!
//! | Where | What |
//! | --- | --- |
//! | `plan` | what `up` will do, and why; pure |
//! | `project` | the project whose VMs an operation works on, with its context |
//! | `record/` | what is written down of a VM, and the state that is derived from it |
//! | `error/` | errors by operation, with their exit codes and hints |
//! | `timeline/`, `diagnosis/` | times of each start; causes of failed ones |
//! | `lock`, `journal`, `parallel` | the lock and the log of every operation, several VMs at once |
//! | `monitor/` | sessions with a running QEMU, paused machines, files of one that has exited |
//! | `companion/` | the process of castra's that works for a running VM: its start and its end |
//! | `consents` | what the user has agreed to that a `castra.toml` asks for |
//! | `mounts/`, `mount` | directories of the host in a guest, and mounting them in a running VM |
//! | `live_ports`, `port` | ports that are forwarded to a VM while it runs, and changing them |
//! | `accompany` | everything that the companion does for a VM by its record |
//! | `disk/` | overlay, base image, layers, data disks, and the removal of disks |
//! | `kernel/` | what a VM boots: the kernel of its image or of its disk, or natively |
//! | `start/` | launching QEMU, booting or restoring, waiting for the guest, continuing |
//! | `suspend/` | suspending, resuming, cloning |
//! | `up`, `down/`, `restart`, `clone_running` | the operations that start and stop VMs |
//! | `pause` | stopping a running machine's processors, and continuing it |
//! | `resize` | growing the disk of a VM, running or stopped |
//! | `throwaway`, `clean/` | VMs for one command; removal of VMs and of their files |
//! | `access` | the way into a guest in which commands can run |
//! | `inspect/` | reads only: states, projects, services, console, history |
//!
//! Imports go one way: `record ← disk ← kernel ← start ← suspend ← {down, up}`. Nothing below
//! imports an operation above it, and only parents and their children import each other.
//!
//! # States
//!
//! ```text
//!                   up                     commands can run
//!   ┌─────────┐ ──────────► ┌──────────┐ ───────────────────► ┌─────────┐ ──────► ┌───────────┐
//!   │ stopped │             │ starting │                      │ running │         │ disk-full │
//!   └─────────┘ ◄────────── └──────────┘                      └─────────┘ ◄────── └───────────┘
//!    ▲      ▲  start failed   ▲      │                          │     │    QEMU pauses the guest
//!    │      │                 │ up   │   QEMU killed, or this   │     │    while its disk cannot
//!    │      │                 │      ▼   machine restarted      │     │    grow
//!    │      │      down     ┌─────────┐                         │     │
//!    │      └────────────── │ crashed │ ◄───────────────────────┘     │ down
//!    │                      └─────────┘                               ▼
//!    │                              QEMU has ended                ┌──────────┐
//!    └─────────────────────────────────────────────────────────── │ stopping │
//!                                                                 └──────────┘
//! ```
//!
//! ```text
//!              suspend                 saved, QEMU ended                  up
//!   ┌─────────┐ ────► ┌────────────┐ ────────────────────► ┌───────────┐ ────► ┌──────────┐
//!   │ running │       │ suspending │                       │ suspended │       │ resuming │
//!   └─────────┘ ◄──── └────────────┘                       └───────────┘ ◄──── └──────────┘
//!       ▲      cancelled                                     │       cancelled     │
//!       │                        down --discard-suspended    ▼                     │
//!       │                                             ┌─────────┐                  │
//!       │                                             │ stopped │                  │
//!       │                                             └─────────┘                  │
//!       └───────────────── loaded, commands can run ◄─ starting ◄──────────────────┘
//! ```
//!
//! Two more states are no step of an operation: `elsewhere`, a VM whose QEMU runs in another pid
//! namespace, and `copied`, one that ran in the original when the project was copied.
//!
//! The state is never stored: [`VmState`] is derived from the record and from QEMU's lock on its
//! pid file, so a crash cannot leave a wrong one behind.

mod access;
mod accompany;
mod clean;
mod clone_running;
mod companion;
mod consents;
mod diagnosis;
mod disk;
mod down;
mod error;
mod full_disk;
mod hostname;
mod inspect;
mod journal;
mod kernel;
mod live_ports;
mod lock;
mod monitor;
mod mount;
mod mounts;
mod parallel;
mod pause;
mod plan;
mod port;
mod ports;
mod project;
mod record;
mod resize;
mod restart;
mod start;
mod suspend;
mod throwaway;
mod timeline;
mod up;

pub use access::{
    explain_silence, host_key_alias, make_ready, running_vm, ssh_address, ssh_target,
    write_known_hosts,
};
pub use accompany::ObservedPort;
pub use clean::{
    CleanOptions, CleanReport, Cleaned, CleanedKind, DataDisks, Kept, Orphan, clean, end_orphan,
    orphans, vm_names,
};
pub use clone_running::clone_running;
pub use companion::{
    CompanionFault, CompanionWork, OutlivedCompanion, end_companion, outlived_companions,
};
pub use diagnosis::{Diagnosis, Trouble};
pub use disk::{FoundDisk, ensure_vm_image};
pub use down::{DownOptions, IfSuspended, down};
pub use error::{
    AccessError, Attempt, CloneError, CompanionError, FileAction, MountError, NoLogin, PortError,
    Predecessor, ProvisionError, StartError, StateError, StepName, StepOwner, StopError,
    SuspendError, ThrowawayError, VmDiskError, VmError, VmIoError,
};
pub use full_disk::FullDisk;
pub use inspect::{
    AgentFault, Console, DiskStatus, ListedVm, ProjectStatus, VmStatus, check_readable,
    last_starts, list_projects, open_console, services, state_of, status, status_of,
    status_of_guests,
};
pub use kernel::{boots_by_uefi, check_own_disk, firmware_of};
pub use mount::{mount, unmount};
pub use mounts::{grant_mounts, ungranted_mounts};
pub use parallel::PerVm;
pub use pause::{pause, unpause};
pub use plan::{BasePlan, Plan, VmPlan, only_declared};
pub use port::{
    acknowledge_ports, add_forwards, announce_ports, forward_listeners, remove_forwards,
};
pub use ports::{SYSTEM_SSH_PORT, check_port, port_owner};
pub use project::ProjectRef;
pub use record::{
    AutoForwards, BaseKind, BaseRecord, BootRecord, CloneRecord, Crash, DiskStamp, FrozenLayer,
    Home, KernelRecord, LayerRecord, MachineRecord, MissingModules, NativeRecord, Progress,
    ProvisionRecord, Record, RecordError, RecordedMachine, SavedDisk, SshServer, StartKind,
    SuspendRecord, VmState, recorded_vm, sentence_of_copy,
};
pub use resize::{GrownRoot, Resized, resize};
pub use restart::restart;
pub use start::{
    UngrantedSecret, UpOptions, UpOutcome, WaitFor, at_step, grant_secrets, ungranted_secrets,
};
pub use suspend::{check_clone, clone, suspend};
pub use throwaway::{Throwaway, start_throwaway, throwaway_name};
pub use timeline::{Phase, PhaseSpan, StartResult, Timeline};
pub use up::{check_wait, up, up_named};
