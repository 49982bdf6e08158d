//! The clock of a guest that castra reaches over SSH alone.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::timeout;

use super::connection::{Connection, LIMIT};
use super::conversation::{Command, Conversation, Start};
use super::{GuestExit, SshError, Target, block_on};
use crate::cancel::Cancel;
use crate::host::unix_time;

/// Sets the guest's clock to this machine's, to the second. The target's user has to be root.
///
/// # Errors
/// The guest could not be reached, was lost, or takes too long; and [`SshError::Interrupted`].
pub fn set_clock(cancel: &Cancel, target: &Target) -> Result<GuestExit, SshError> {
    block_on(async {
        let connection = Connection::open(target, cancel).await?;
        let set = async {
            // The clock is read at the last moment: a login takes a second under emulation.
            let now = (unix_time() + Duration::from_millis(500)).as_secs();
            let argv = ["date", "-u", "-s"].map(Into::into).into_iter();
            let command = Command::Argv(argv.chain([format!("@{now}").into()]).collect());
            let mut conversation = Conversation::start(&connection, Start::of(&command)).await?;
            let _ = conversation.outgoing().end_data().await;
            conversation.until_exit(|_, _| ControlFlow::Continue(())).await
        };
        let slow = |_| SshError::TooSlow { address: target.address, limit: LIMIT };
        connection.guard(cancel, async { timeout(LIMIT, set).await.map_err(slow)? }).await
    })
}
