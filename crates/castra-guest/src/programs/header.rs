//! Reads the header in which a command arrives as an array.

use castra_flow::{Incoming, Message, Received};
use castra_wire::{
    ExecHeader, ExecHeaderError, MALFORMED_SIGNAL, TOO_LONG_SIGNAL, exec_header_bytes,
};

use super::exec::NotStarted;

/// Reads the header, and returns it with any data behind it, which is the command's stdin.
///
/// # Errors
/// The bytes are not a valid header, or end before it is complete.
pub(super) async fn read(
    incoming: &mut Incoming,
) -> Result<(ExecHeader, Option<Received>), NotStarted> {
    let mut bytes = Vec::new();
    loop {
        let mut data = match incoming.next().await {
            Some(Message::Data(data)) => data,
            None | Some(Message::EndOfData | Message::Closed) => {
                return Err(NotStarted::Signal(MALFORMED_SIGNAL));
            }
            Some(_) => continue,
        };
        let before = bytes.len();
        bytes.extend_from_slice(&data);
        let Some(length) = exec_header_bytes(&bytes).map_err(refusal)? else { continue };
        if bytes.len() >= length {
            let header = ExecHeader::decode(&bytes[size_of::<u32>()..length]).map_err(refusal)?;
            data.skip(length - before);
            return Ok((header, (!data.is_empty()).then_some(data)));
        }
    }
}

fn refusal(error: ExecHeaderError) -> NotStarted {
    NotStarted::Signal(match error {
        ExecHeaderError::TooLong => TOO_LONG_SIGNAL,
        ExecHeaderError::Malformed => MALFORMED_SIGNAL,
    })
}
