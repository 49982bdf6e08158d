//! Watch of a directory of a guest.

use castra_flow::{Incoming, Outgoing};
use castra_wire::{FileEvent, Records};

use super::SessionError;
use super::program::next_data;

/// A watch of a directory. Dropping it ends it.
pub struct Watch {
    incoming: Incoming,
    _outgoing: Outgoing,
    records: Records,
}

impl Watch {
    pub(super) fn new(incoming: Incoming, outgoing: Outgoing) -> Self {
        Self { incoming, _outgoing: outgoing, records: Records::default() }
    }

    /// Waits for the next change. Cancel-safe.
    ///
    /// # Errors
    /// The session has ended, or the guest cannot watch any more.
    pub async fn next(&mut self) -> Result<FileEvent, SessionError> {
        loop {
            if let Some(record) = self.records.next_record()? {
                return Ok(FileEvent::decode(&record)?);
            }
            let data = next_data(&mut self.incoming).await?.ok_or(SessionError::Lost)?;
            self.records.push(&data);
        }
    }
}
