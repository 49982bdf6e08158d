//! The conductors: what happens to a VM, from its plan to its record.
//!
//! ```text
//!                 up                    agent ready
//!   ┌─────────┐ ──────► ┌──────────┐ ───────────────► ┌─────────┐
//!   │ stopped │         │ starting │                  │ running │ ◄─┐
//!   └─────────┘ ◄────── └──────────┘                  └─────────┘   │ up (attaches)
//!     ▲     ▲   failed        │                         │    │  └───┘
//!     │     │                 │ QEMU killed, power lost │    │ down
//!     │     │                 ▼                         ▼    ▼
//!     │     │  up, down  ┌─────────┐             ┌─────────┐ ┌──────────┐
//!     │     └─────────── │ crashed │ ◄────────── │ crashed │ │ stopping │
//!     │                  └─────────┘             └─────────┘ └──────────┘
//!     └───────────────────────────────────────────────────────────┘
//! ```
//!
//! ```text
//!   running ──suspend──► suspending ──saved, QEMU ended──► suspended ──up──► resuming ──loaded──► starting ──► running
//!      ▲                     │                              │   ▲               │
//!      └── killed half-way ──┘       stopped ◄── discarded ─┘   └─ it failed ───┘
//! ```
//!
//! The state is never stored: `state::observe` derives it from the record and from QEMU's lock on its pid file, so it
//! cannot be a lie that a crash left behind.

mod access;
mod clean;
mod diagnosis;
mod disk;
mod down;
mod error;
mod full_disk;
mod inspect;
mod journal;
mod lock;
mod monitor;
mod plan;
mod record;
mod start;
mod suspend;
mod throwaway;
mod timeline;
mod up;

pub use access::{
    explain_silence, host_key_alias, make_ready, running_vm, ssh_address, ssh_target, write_known_hosts,
};
pub use clean::{CleanOptions, CleanReport, Cleaned, CleanedKind, Kept, Orphan, clean, end_orphan, orphans};
pub use diagnosis::{Diagnosis, Trouble};
pub use disk::{check_own_disk, ensure_vm_image};
pub use down::{DownOptions, IfSuspended, down};
pub use error::{Predecessor, VmError};
pub use full_disk::FullDisk;
pub use inspect::{
    Console, ListedVm, ProjectStatus, VmStatus, check_readable, last_starts, list_projects, open_console,
    services, state_of, status, status_of, status_of_guests,
};
pub use plan::{BasePlan, Plan, VmPlan};
pub use record::{
    BaseKind, BaseRecord, BootRecord, CloneRecord, Crash, DiskStamp, FrozenLayer, Home, LayerRecord,
    MachineRecord, MissingModules, Progress, Record, RecordError, RecordedMachine, StartKind, SuspendRecord,
    VmState, recorded_vm, sentence_of_copy,
};
pub use start::{UpOptions, UpOutcome, WaitFor, check_port, port_owner};
pub use suspend::{check_clone, clone, suspend};
pub use throwaway::{Throwaway, start_throwaway, throwaway_name};
pub use timeline::{Phase, PhaseSpan, StartResult, Timeline};
pub use up::{check_wait, up};

/// What became of each of several VMs, by name.
pub type PerVm<T> = Vec<(String, Result<T, VmError>)>;
