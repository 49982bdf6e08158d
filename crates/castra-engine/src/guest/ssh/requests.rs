//! Commands over SSH: the requests that start them.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};

use bytes::Bytes;
use castra_flow::{Incoming, Message, Outgoing, ssh};
use castra_wire::{EXEC_SUBSYSTEM, ExecHeader, StartDirectory};
use russh::Pty;
use russh::client::Msg;

use super::conversation::{COMMAND, Command, Conversation, MAX_LINE_BYTES, Start};
use super::login::{Login, lost};
use super::{SshError, Tty, quote};

/// Starts a command. Returns once the guest has granted it. An agent of an older castra refuses an
/// array and is sent a line instead, so anything read from stdin before that would be lost.
pub(super) async fn start(login: &Login, start: Start<'_>) -> Result<Conversation, SshError> {
    if login.is_to_own_server() {
        return start_at_own_server(login, start).await;
    }
    let Start { command, tty, environment, directory } = start;
    let argv = match command {
        Command::Argv(argv) => argv,
        Command::Line(line) => {
            let line = Request::Line([&entering(directory)[..], line.as_bytes()].concat());
            return request(login, line, tty, environment).await;
        }
        Command::Shell => return request(login, shell(directory), tty, environment).await,
    };
    let header = ExecHeader {
        arguments: argv.clone(),
        environment: environment.to_vec(),
        directory: directory.cloned(),
    };
    let encoded = header.encode().map_err(|_| SshError::TooLong)?;
    if let Some(started) = describe(login, encoded.into(), tty).await? {
        return Ok(started.described_by(&header));
    }
    let line = [entering(directory), quote(argv)].concat();
    if line.len() > MAX_LINE_BYTES {
        return Err(SshError::OldAgent { what: "more than 128 KiB of arguments" });
    }
    request(login, Request::Line(line), tty, environment).await
}

/// Starts a command at a server that has SSH's own requests only: the user's shell parses a line
/// in which every argument is quoted. Such servers drop most variables, so those are in the line.
async fn start_at_own_server(login: &Login, start: Start<'_>) -> Result<Conversation, SshError> {
    let Start { command, tty, environment, directory } = start;
    let rest = match command {
        Command::Shell => return request(login, shell(directory), tty, environment).await,
        Command::Line(line) => [exports(environment), line.as_bytes().to_vec()].concat(),
        Command::Argv(argv) => quote(&[variables(environment), argv.clone()].concat()),
    };
    let line = [entering(directory), rest].concat();
    if line.len() > MAX_LINE_BYTES {
        return Err(SshError::NotOverOwnServer { what: "more than 128 KiB of arguments" });
    }
    request(login, Request::Line(line), tty, &[]).await
}

/// Returns the request for a shell, which first enters a directory.
fn shell(directory: Option<&StartDirectory>) -> Request {
    match directory {
        None => Request::Shell,
        Some(_) => Request::Line([&entering(directory)[..], br#"exec "$SHELL" -l"#].concat()),
    }
}

/// Returns the beginning of a shell's line that enters a directory. All shells understand it,
/// `csh` among them.
fn entering(directory: Option<&StartDirectory>) -> Vec<u8> {
    let Some(directory) = directory else { return Vec::new() };
    let mut path = directory.path().to_owned();
    if !path.as_encoded_bytes().starts_with(b"/") {
        // It is neither an option nor looked up in CDPATH.
        path = [OsStr::new("./"), &path].into_iter().collect();
    }
    let path = quote(&[path]);
    match directory {
        StartDirectory::Named(_) => [b"cd ", &path[..], b" || exit 126; "].concat(),
        StartDirectory::Mounted(_) => [b"test -d ", &path[..], b" && cd ", &path, b"; "].concat(),
    }
}

/// Returns the beginning of a command that gets these variables.
fn variables(environment: &[(OsString, OsString)]) -> Vec<OsString> {
    if environment.is_empty() {
        return Vec::new();
    }
    let assigned = environment.iter().map(assignment);
    std::iter::once("env".into()).chain(assigned).collect()
}

/// Returns the beginning of a shell's line that sets these variables.
fn exports(environment: &[(OsString, OsString)]) -> Vec<u8> {
    let export = |pair| [b"export ", &quote(&[assignment(pair)])[..], b"; "].concat();
    environment.iter().flat_map(export).collect()
}

fn assignment((name, value): &(OsString, OsString)) -> OsString {
    let mut text = name.clone();
    text.push("=");
    text.push(value);
    text
}

/// Starts a command whose arguments no shell parses; returns `None` if the guest does not support
/// that. The header is sent along with the request if the guest's window permits, so that it costs
/// no round trip.
async fn describe(
    login: &Login,
    mut header: Bytes,
    tty: Option<&Tty>,
) -> Result<Option<Conversation>, SshError> {
    let mut requests = Requests::open(login).await?;
    requests.terminal(tty).await?;
    requests.outgoing.half().request_subsystem(true, EXEC_SUBSYSTEM).await.map_err(lost)?;
    requests.awaited.push_back(COMMAND);
    if header.len() <= requests.outgoing.half().writable_packet_size().await {
        requests.outgoing.send(None, std::mem::take(&mut header)).await.map_err(lost)?;
    }
    match requests.granted().await {
        Ok(early) => {
            // Sends nothing if everything has been sent.
            requests.outgoing.send(None, header).await.map_err(lost)?;
            Ok(Some(requests.start(early)))
        }
        Err(SshError::NotStarted { what: COMMAND }) => {
            requests.outgoing.half().close().await.map_err(lost)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn request(
    login: &Login,
    request: Request,
    tty: Option<&Tty>,
    environment: &[(OsString, OsString)],
) -> Result<Conversation, SshError> {
    let mut requests = Requests::open(login).await?;
    let half = requests.outgoing.half();
    for (name, value) in environment {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
            return Err(SshError::OldAgent { what: "a variable that is not UTF-8" });
        };
        half.set_env(false, name, value).await.map_err(lost)?;
    }
    requests.terminal(tty).await?;
    match request {
        Request::Line(line) => requests.outgoing.half().exec(true, line).await,
        Request::Shell => requests.outgoing.half().request_shell(true).await,
    }
    .map_err(lost)?;
    requests.awaited.push_back(COMMAND);
    let early = requests.granted().await?;
    Ok(requests.start(early))
}

/// A request in SSH's own terms.
enum Request {
    /// A line for the user's shell.
    Line(Vec<u8>),
    /// The shell itself.
    Shell,
}

/// A new channel and its requests.
struct Requests {
    incoming: Incoming,
    outgoing: ssh::Outgoing<Msg>,
    /// Requests that the guest has neither granted nor refused yet.
    awaited: VecDeque<&'static str>,
}

impl Requests {
    async fn open(login: &Login) -> Result<Self, SshError> {
        let (incoming, outgoing) = login.session().await?;
        Ok(Self { incoming, outgoing, awaited: VecDeque::new() })
    }

    async fn terminal(&mut self, tty: Option<&Tty>) -> Result<(), SshError> {
        let Some(Tty { term, columns, rows }) = tty else { return Ok(()) };
        let modes = [(Pty::IUTF8, 1)];
        let half = self.outgoing.half();
        half.request_pty(true, term, (*columns).into(), (*rows).into(), 0, 0, &modes)
            .await
            .map_err(lost)?;
        self.awaited.push_back("a terminal");
        Ok(())
    }

    /// Waits until the guest has granted all requests. Returns a message of the command itself, if
    /// one came first.
    async fn granted(&mut self) -> Result<Option<Message>, SshError> {
        while let Some(what) = self.awaited.front().copied() {
            match self.incoming.next().await.ok_or(SshError::Lost)? {
                Message::Opened => drop(self.awaited.pop_front()),
                Message::Refused(_) => return Err(SshError::NotStarted { what }),
                Message::Closed => return Err(SshError::Lost),
                early => return Ok(Some(early)),
            }
        }
        Ok(None)
    }

    fn start(self, early: Option<Message>) -> Conversation {
        Conversation::new(self.incoming, Outgoing::from(self.outgoing), early)
    }
}
