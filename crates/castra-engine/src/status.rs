//! States of VMs, as [`Vm::status`](crate::Vm::status) and
//! [`Project::status`](crate::Project::status) return them.

#[doc(inline)]
pub use crate::guest::{CloudInitState, Mount, MountState, NetworkFault};
#[doc(inline)]
pub use crate::qemu::{Accelerator, AcceleratorChoice};
#[doc(inline)]
pub use crate::vm::{AgentFault, Crash, FullDisk, MissingModules, VmState, VmStatus};
