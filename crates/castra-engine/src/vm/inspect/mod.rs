//! Reads only: states, projects, ports, consoles and histories of VMs. Nothing here takes a lock
//! that others wait for, or changes a VM.

mod agent;
mod console;
mod history;
mod projects;
mod services;
mod status;

pub use agent::AgentFault;
pub use console::{Console, open_console};
pub use history::last_starts;
pub(super) use projects::note;
pub use projects::{ListedVm, ProjectStatus, list_projects};
pub use services::services;
pub(super) use status::glance;
pub use status::{
    DiskStatus, VmStatus, check_readable, state_of, status, status_of, status_of_guests,
};
