//! Reports of kept programs, each a record.

use std::ffi::OsString;

use crate::exec::{put, put_number, take, take_number};
use crate::records::{RecordError, record_of};

/// A kept program that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramReport {
    /// Pid of the program.
    pub pid: u32,
    /// Name that its host gave it; may be empty.
    pub tag: String,
    /// Name of the user who runs it.
    pub user: String,
    /// The program and its arguments.
    pub arguments: Vec<OsString>,
    /// Variables that its host gave it.
    pub environment: Vec<(OsString, OsString)>,
    /// Directory in which it was started, if the host named one.
    pub directory: Option<OsString>,
    /// True if it has a terminal.
    pub has_terminal: bool,
}

impl ProgramReport {
    /// Returns the report as a record. A report of arguments that are too long for one is empty.
    pub fn encode(&self) -> Vec<u8> {
        record_of(&self.put().unwrap_or_default())
    }

    fn put(&self) -> Option<Vec<u8>> {
        let mut bytes = self.pid.to_be_bytes().to_vec();
        bytes.push(u8::from(self.has_terminal));
        put(&mut bytes, self.tag.as_ref()).ok()?;
        put(&mut bytes, self.user.as_ref()).ok()?;
        put_number(&mut bytes, self.arguments.len()).ok()?;
        for argument in &self.arguments {
            put(&mut bytes, argument).ok()?;
        }
        put_number(&mut bytes, self.environment.len()).ok()?;
        for (name, value) in &self.environment {
            put(&mut bytes, name).ok()?;
            put(&mut bytes, value).ok()?;
        }
        put_number(&mut bytes, self.directory.iter().len()).ok()?;
        self.directory.iter().try_for_each(|path| put(&mut bytes, path).ok())?;
        Some(bytes)
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// The bytes are no report.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (pid, rest) = bytes.split_first_chunk().ok_or(RecordError)?;
        let (has_terminal, mut rest) = match rest {
            [flag @ (0 | 1), rest @ ..] => (*flag == 1, rest),
            _ => return Err(RecordError),
        };
        let rest = &mut rest;
        let number = |rest: &mut &[u8]| take_number(rest).map_err(|_| RecordError);
        let bytes = |rest: &mut &[u8]| take(rest).map_err(|_| RecordError);
        let text = |rest: &mut &[u8]| bytes(rest)?.into_string().map_err(|_| RecordError);
        let (tag, user) = (text(rest)?, text(rest)?);
        let mut arguments = Vec::new();
        for _ in 0..number(rest)? {
            arguments.push(bytes(rest)?);
        }
        let mut environment = Vec::new();
        for _ in 0..number(rest)? {
            environment.push((bytes(rest)?, bytes(rest)?));
        }
        let directory = match number(rest)? {
            0 => None,
            1 => Some(bytes(rest)?),
            _ => return Err(RecordError),
        };
        if !rest.is_empty() {
            return Err(RecordError);
        }
        let pid = u32::from_be_bytes(*pid);
        Ok(Self { pid, tag, user, arguments, environment, directory, has_terminal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Records;

    #[test]
    fn a_report_survives_the_wire_and_a_part_of_it_is_none() {
        for directory in [None, Some("/srv".into())] {
            let sent = ProgramReport {
                pid: 77,
                tag: "server".into(),
                user: "root".into(),
                arguments: vec!["sh".into(), "-c".into(), "".into()],
                environment: vec![("A".into(), "b=c".into())],
                directory,
                has_terminal: true,
            };
            let mut records = Records::default();
            records.push(&sent.encode());
            let bytes = records.next_record().expect("a record").expect("is complete");
            assert_eq!(ProgramReport::decode(&bytes), Ok(sent));
            for end in 0..bytes.len() {
                assert_eq!(ProgramReport::decode(&bytes[..end]), Err(RecordError), "{end}");
            }
        }
    }
}
