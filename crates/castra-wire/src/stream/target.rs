//! Targets of streams, and how a request names them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use bytes::Bytes;

use super::{MAX_PAYLOAD_BYTES, Window};
use crate::exec::{put, put_number, take, take_number};

/// End of a stream in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A program. The stream's first data is its [`ExecHeader`](crate::ExecHeader), and all after
    /// that its stdin.
    Program {
        /// Name of the user who runs it.
        user: String,
        /// Kind of the program.
        program: Program,
        /// Its terminal, if it has one.
        terminal: Option<Terminal>,
    },
    /// An SFTP server.
    Files {
        /// Name of the user whose rights it has.
        user: String,
    },
    /// A TCP connection.
    Tcp(Host),
    /// A Unix socket.
    Socket {
        /// Name of the user who connects.
        user: String,
        /// Path of the socket.
        path: OsString,
    },
    /// A directory of the host's. The stream carries [`MountMessage`](crate::MountMessage)s. A
    /// later request for the same path takes over the mount.
    Mount {
        /// Path in the guest; a directory that is made if it is missing.
        path: OsString,
        /// The guest's kernel refuses to write.
        is_read_only: bool,
        /// The host will send [`Changes`](crate::Changes). An agent that does not know them refuses
        /// the request as malformed.
        sends_changes: bool,
    },
    /// A TCP connection to the service on this port, wherever in the guest it listens.
    Service(u16),
    /// Reports of the TCP ports on which something listens, one at once and one after each change:
    /// [`ListenerReport`](crate::ListenerReport)s.
    Listeners,
    /// A program as [`Self::Program`] that the end of the stream does not end. The guest's first
    /// data are its pid, a 32-bit number, and the bytes of its output before the stream's, a 64-bit
    /// one. An end of data ends its stdin, and a close leaves that open.
    Kept {
        /// Name of the user who runs it.
        user: String,
        /// Kind of the program.
        program: Program,
        /// Its terminal, if it has one.
        terminal: Option<Terminal>,
        /// Name by which the host finds it again; may be empty.
        tag: String,
        /// Time after which it is killed with its process group, in milliseconds of the guest's;
        /// 0 for none.
        limit_ms: u64,
    },
    /// Output and exit of a kept program, after the same first data.
    Follow {
        /// The program. One that has just ended is found by its pid, if `from` is given.
        program: KeptProgram,
        /// Bytes of its output that the host has already; without them, only output from now on
        /// follows. The guest keeps some of the last ones.
        from: Option<u64>,
    },
    /// Orders for a kept program: data for its stdin, signals, and sizes of its terminal. After an
    /// end of data, and once stdin has taken everything, the guest reports an exit with 0, or with
    /// 1 if stdin takes no more.
    Control {
        /// The program.
        program: KeptProgram,
        /// The end of data ends its stdin.
        ends_stdin: bool,
    },
    /// A list of the kept programs that run: [`ProgramReport`](crate::ProgramReport)s.
    KeptPrograms,
    /// Reports of what changes in a directory, until the host closes the stream:
    /// [`FileEvent`](crate::FileEvent)s. The guest opens the stream once it watches.
    Watch {
        /// Name of the user with whose rights it watches.
        user: String,
        /// Path of the directory.
        path: OsString,
        /// The directories below it are watched, too.
        is_recursive: bool,
    },
}

/// A kept program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptProgram {
    /// The one with this pid.
    Pid(u32),
    /// The last one that was started with this tag.
    Tag(String),
}

/// Program to start, whose arguments are in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The arguments are a program and its own.
    Arguments,
    /// The only argument is a line for the user's shell.
    Line,
    /// The user's shell as a login shell; there are no arguments.
    Shell,
}

/// Terminal of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// Terminal type, as in `TERM`.
    pub term: String,
    /// Size of its window.
    pub window: Window,
}

/// Host and port, as the guest resolves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name or address.
    pub name: String,
    /// Port.
    pub port: u16,
}

/// Reason why a target cannot be encoded, or bytes are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The target does not fit into one frame.
    #[error("the request is longer than {MAX_PAYLOAD_BYTES} bytes")]
    TooLong,
    /// The bytes are no target that this version knows.
    #[error("not a target of a stream")]
    Malformed,
}

impl Target {
    /// Returns the payload of the request for this target.
    ///
    /// # Errors
    /// [`TargetError::TooLong`] if it does not fit into one frame.
    pub fn encode(&self) -> Result<Bytes, TargetError> {
        let mut bytes = Vec::new();
        let encoded = match self {
            Self::Program { user, program, terminal } => {
                bytes.push(1);
                bytes.push(program.code());
                put_text(&mut bytes, user).and_then(|()| put_terminal(&mut bytes, terminal))
            }
            Self::Files { user } => {
                bytes.push(2);
                put_text(&mut bytes, user)
            }
            Self::Tcp(Host { name, port }) => {
                bytes.push(3);
                bytes.extend(port.to_be_bytes());
                put_text(&mut bytes, name)
            }
            Self::Socket { user, path } => {
                bytes.push(4);
                put_text(&mut bytes, user)
                    .and_then(|()| put(&mut bytes, path).map_err(|_| TargetError::TooLong))
            }
            Self::Mount { path, is_read_only, sends_changes } => {
                bytes.push(5);
                bytes.push(u8::from(*is_read_only) | u8::from(*sends_changes) << 1);
                put(&mut bytes, path).map_err(|_| TargetError::TooLong)
            }
            Self::Service(port) => {
                bytes.push(6);
                bytes.extend(port.to_be_bytes());
                Ok(())
            }
            Self::Listeners => {
                bytes.push(7);
                Ok(())
            }
            Self::Kept { user, program, terminal, tag, limit_ms } => {
                bytes.push(8);
                bytes.push(program.code());
                bytes.extend(limit_ms.to_be_bytes());
                put_text(&mut bytes, user)
                    .and_then(|()| put_text(&mut bytes, tag))
                    .and_then(|()| put_terminal(&mut bytes, terminal))
            }
            Self::Follow { program, from } => {
                bytes.push(9);
                bytes.push(u8::from(from.is_some()));
                bytes.extend(from.unwrap_or(0).to_be_bytes());
                put_kept(&mut bytes, program)
            }
            Self::Control { program, ends_stdin } => {
                bytes.push(10);
                bytes.push(u8::from(*ends_stdin));
                put_kept(&mut bytes, program)
            }
            Self::KeptPrograms => {
                bytes.push(11);
                Ok(())
            }
            Self::Watch { user, path, is_recursive } => {
                bytes.push(12);
                bytes.push(u8::from(*is_recursive));
                put_text(&mut bytes, user)
                    .and_then(|()| put(&mut bytes, path).map_err(|_| TargetError::TooLong))
            }
        };
        encoded?;
        if bytes.len() > MAX_PAYLOAD_BYTES {
            return Err(TargetError::TooLong);
        }
        Ok(bytes.into())
    }

    /// Decodes the payload of a request.
    ///
    /// # Errors
    /// [`TargetError::Malformed`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, TargetError> {
        let mut rest = bytes;
        let target = match take_byte(&mut rest)? {
            1 => {
                let program = Program::of_code(take_byte(&mut rest)?)?;
                let user = take_text(&mut rest)?;
                Self::Program { user, program, terminal: take_terminal(&mut rest)? }
            }
            2 => Self::Files { user: take_text(&mut rest)? },
            3 => {
                let port = take_port(&mut rest)?;
                Self::Tcp(Host { name: take_text(&mut rest)?, port })
            }
            4 => Self::Socket { user: take_text(&mut rest)?, path: take_bytes(&mut rest)? },
            5 => {
                let flags = take_byte(&mut rest)?;
                if flags > 3 {
                    return Err(TargetError::Malformed);
                }
                let (is_read_only, sends_changes) = (flags & 1 != 0, flags & 2 != 0);
                Self::Mount { path: take_bytes(&mut rest)?, is_read_only, sends_changes }
            }
            6 => Self::Service(take_port(&mut rest)?),
            7 => Self::Listeners,
            8 => {
                let program = Program::of_code(take_byte(&mut rest)?)?;
                let limit_ms = take_u64(&mut rest)?;
                let (user, tag) = (take_text(&mut rest)?, take_text(&mut rest)?);
                Self::Kept { user, program, terminal: take_terminal(&mut rest)?, tag, limit_ms }
            }
            9 => {
                let has_some = take_flag(&mut rest)?;
                let from = Some(take_u64(&mut rest)?).filter(|_| has_some);
                Self::Follow { program: take_kept(&mut rest)?, from }
            }
            10 => {
                let ends_stdin = take_flag(&mut rest)?;
                Self::Control { program: take_kept(&mut rest)?, ends_stdin }
            }
            11 => Self::KeptPrograms,
            12 => {
                let is_recursive = take_flag(&mut rest)?;
                let user = take_text(&mut rest)?;
                Self::Watch { user, path: take_bytes(&mut rest)?, is_recursive }
            }
            _ => return Err(TargetError::Malformed),
        };
        if rest.is_empty() { Ok(target) } else { Err(TargetError::Malformed) }
    }
}

impl Program {
    fn code(self) -> u8 {
        match self {
            Self::Arguments => 1,
            Self::Line => 2,
            Self::Shell => 3,
        }
    }

    fn of_code(code: u8) -> Result<Self, TargetError> {
        match code {
            1 => Ok(Self::Arguments),
            2 => Ok(Self::Line),
            3 => Ok(Self::Shell),
            _ => Err(TargetError::Malformed),
        }
    }
}

/// Appends the number of terminals, none or one, and the terminal.
fn put_terminal(bytes: &mut Vec<u8>, terminal: &Option<Terminal>) -> Result<(), TargetError> {
    bytes.push(u8::from(terminal.is_some()));
    let Some(Terminal { term, window }) = terminal else { return Ok(()) };
    let Window { columns, rows, width_px, height_px } = *window;
    for size in [columns, rows, width_px, height_px] {
        put_number(bytes, size.into()).map_err(|_| TargetError::TooLong)?;
    }
    put_text(bytes, term)
}

fn take_terminal(rest: &mut &[u8]) -> Result<Option<Terminal>, TargetError> {
    match take_byte(rest)? {
        0 => return Ok(None),
        1 => {}
        _ => return Err(TargetError::Malformed),
    }
    let mut size = || {
        let number = take_number(rest).map_err(|_| TargetError::Malformed)?;
        u16::try_from(number).map_err(|_| TargetError::Malformed)
    };
    let window = Window { columns: size()?, rows: size()?, width_px: size()?, height_px: size()? };
    Ok(Some(Terminal { term: take_text(rest)?, window }))
}

fn put_kept(bytes: &mut Vec<u8>, program: &KeptProgram) -> Result<(), TargetError> {
    match program {
        KeptProgram::Pid(pid) => {
            bytes.push(1);
            bytes.extend(pid.to_be_bytes());
            Ok(())
        }
        KeptProgram::Tag(tag) => {
            bytes.push(2);
            put_text(bytes, tag)
        }
    }
}

fn take_kept(rest: &mut &[u8]) -> Result<KeptProgram, TargetError> {
    match take_byte(rest)? {
        1 => {
            let (pid, after) = rest.split_first_chunk().ok_or(TargetError::Malformed)?;
            *rest = after;
            Ok(KeptProgram::Pid(u32::from_be_bytes(*pid)))
        }
        2 => Ok(KeptProgram::Tag(take_text(rest)?)),
        _ => Err(TargetError::Malformed),
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) -> Result<(), TargetError> {
    put(bytes, OsStr::from_bytes(text.as_bytes())).map_err(|_| TargetError::TooLong)
}

fn take_byte(rest: &mut &[u8]) -> Result<u8, TargetError> {
    let (first, after) = rest.split_first().ok_or(TargetError::Malformed)?;
    *rest = after;
    Ok(*first)
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, TargetError> {
    let (number, after) = rest.split_first_chunk().ok_or(TargetError::Malformed)?;
    *rest = after;
    Ok(u64::from_be_bytes(*number))
}

fn take_flag(rest: &mut &[u8]) -> Result<bool, TargetError> {
    match take_byte(rest)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(TargetError::Malformed),
    }
}

fn take_port(rest: &mut &[u8]) -> Result<u16, TargetError> {
    Ok(u16::from_be_bytes([take_byte(rest)?, take_byte(rest)?]))
}

fn take_bytes(rest: &mut &[u8]) -> Result<OsString, TargetError> {
    take(rest).map_err(|_| TargetError::Malformed)
}

fn take_text(rest: &mut &[u8]) -> Result<String, TargetError> {
    String::from_utf8(take_bytes(rest)?.into_vec()).map_err(|_| TargetError::Malformed)
}
