//! Programs of the guest that the host starts: commands, shells and their terminals, joined to a
//! channel of SSH or of a stream port.

mod exec;
mod feed;
mod header;
mod kept;
mod order;
mod pipes;
mod program;
mod pty;
mod pump;
mod spare;
mod spawn;

pub(crate) use exec::{Described, run, start};
pub(crate) use kept::{KeptPrograms, New};
pub(crate) use program::{Program, look_up_all};
pub(crate) use pty::{Size, Terminal};
pub(crate) use spare::{give_up as give_up_spare, prepare as prepare_spare};
