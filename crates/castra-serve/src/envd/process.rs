//! `process.Process`: the programs of a sandbox.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use castra_engine::GuestExit;
use castra_engine::session::{
    GuestSession, KeptProgram, NewProgram, ProgramEvent, RunningProgram, SessionError, WindowSize,
};
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::time::{Instant, interval_at};

use super::connect::{Messages, out_of_time};
use super::enter::Call;
use super::error::{Code, ConnectError};
use super::messages::process::{
    CloseStdinRequest, ConnectRequest, DataEvent, Empty, EndEvent, Event, InputEvent, ListRequest,
    ListResponse, Output, ProcessConfig, ProcessEvent, ProcessInfo, ProcessSelector, Pty, PtySize,
    Selector, SendInputRequest, SendSignalRequest, Signal, StartEvent, StartRequest, StartResponse,
    StreamInputRequest, UpdateRequest,
};
use crate::sandboxes::{BASH, Sandbox};

pub(super) async fn list(call: Call, _: ListRequest) -> Result<ListResponse, ConnectError> {
    let text = |text: &OsString| text.to_string_lossy().into_owned();
    let programs = call.sandbox.session().await?.programs().await?;
    let info = |program: &castra_engine::session::ProgramReport| {
        let mut words = program.arguments.iter().map(text);
        let config = ProcessConfig {
            cmd: words.next().unwrap_or_default(),
            args: words.collect(),
            envs: program
                .environment
                .iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            cwd: program.directory.as_ref().map(text),
        };
        let tag = (!program.tag.is_empty()).then(|| program.tag.clone());
        ProcessInfo { config: Some(config), pid: program.pid, tag }
    };
    Ok(ListResponse { processes: programs.iter().map(info).collect() })
}

pub(super) async fn start(
    call: Call,
    request: StartRequest,
) -> Result<impl Stream<Item = Result<StartResponse, ConnectError>> + use<>, ConnectError> {
    let config = request.process.unwrap_or_default();
    if config.cmd.is_empty() {
        return Err(ConnectError::invalid("process.cmd is empty"));
    }
    let session = call.sandbox.session().await?;
    let mut arguments = vec![program(&call.sandbox, &session, config.cmd).await];
    arguments.extend(config.args.into_iter().map(OsString::from));
    let record = call.sandbox.record();
    // Programs know by the first that they are in a sandbox.
    let own = [
        ("E2B_SANDBOX", "true".to_owned()),
        ("E2B_SANDBOX_ID", record.id),
        ("E2B_TEMPLATE_ID", record.template),
    ];
    let mut environment: BTreeMap<String, String> =
        own.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    environment.extend(record.environment);
    environment.extend(config.envs);
    let has_terminal = request.pty.is_some();
    let new = NewProgram {
        user: call.user.clone(),
        arguments,
        environment: environment
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        directory: config.cwd.filter(|path| !path.is_empty()).map(|path| directory(&path)),
        terminal: request.pty.map(size).transpose()?,
        tag: request.tag.unwrap_or_default(),
        // The older clients do not say, and use it.
        has_stdin: has_terminal || request.stdin != Some(false),
        // It ends with its time even if its client has gone before.
        limit: call.deadline.map(|deadline| deadline - Instant::now()),
    };
    let running = session.start(new).await?;
    Ok(events(call, running, has_terminal))
}

/// Returns the program to start: without bash, the shell that is there.
async fn program(sandbox: &Sandbox, session: &GuestSession, named: String) -> OsString {
    if named == BASH { sandbox.shell(session).await.into() } else { named.into() }
}

fn directory(path: &str) -> OsString {
    // The guest's agent takes it relative to the home.
    path.strip_prefix("~/").or_else(|| (path == "~").then_some(".")).unwrap_or(path).into()
}

pub(super) async fn connect(
    call: Call,
    request: ConnectRequest,
) -> Result<impl Stream<Item = Result<StartResponse, ConnectError>> + use<>, ConnectError> {
    let program = selected(request.process)?;
    let session = call.sandbox.session().await?;
    let running = session.follow(program).await?;
    let known = session.programs().await?;
    let has_terminal = known.iter().any(|it| it.pid == running.pid() && it.has_terminal);
    Ok(events(call, running, has_terminal))
}

/// Stream of a program's events.
struct Events {
    sandbox: Arc<Sandbox>,
    running: RunningProgram,
    has_terminal: bool,
    deadline: Option<Instant>,
    signs: tokio::time::Interval,
    step: Step,
}

enum Step {
    Begin,
    Run,
    End,
}

fn events(
    call: Call,
    running: RunningProgram,
    has_terminal: bool,
) -> impl Stream<Item = Result<StartResponse, ConnectError>> {
    let Call { sandbox, deadline, keepalive, .. } = call;
    let signs = interval_at(Instant::now() + keepalive, keepalive);
    let step = Step::Begin;
    let events = Events { sandbox, running, has_terminal, deadline, signs, step };
    unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((event, events))
    })
}

impl Events {
    async fn next(&mut self) -> Option<Result<StartResponse, ConnectError>> {
        let event = match self.step {
            Step::End => return None,
            Step::Begin => {
                self.step = Step::Run;
                Ok(Event::Start(StartEvent { pid: self.running.pid() }))
            }
            Step::Run => self.wait().await,
        };
        if matches!(event, Ok(Event::End(_)) | Err(_)) {
            self.step = Step::End;
        }
        Some(event.map(|event| StartResponse { event: Some(ProcessEvent { event: Some(event) }) }))
    }

    async fn wait(&mut self) -> Result<Event, ConnectError> {
        loop {
            let deadline = self.deadline;
            let over = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let next = tokio::select! {
                next = self.running.next() => next,
                _ = self.signs.tick() => return Ok(Event::Keepalive(Empty::default())),
                () = over => return Err(out_of_time()),
            };
            match next {
                Ok(event) => return Ok(self.event(event)),
                Err(SessionError::Lost) => {
                    self.running = self.sandbox.follow_again(&self.running).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn event(&self, event: ProgramEvent) -> Event {
        let data = |output| Event::Data(DataEvent { output: Some(output) });
        match event {
            ProgramEvent::Stdout(bytes) if self.has_terminal => data(Output::Pty(bytes.into())),
            ProgramEvent::Stdout(bytes) => data(Output::Stdout(bytes.into())),
            ProgramEvent::Stderr(bytes) => data(Output::Stderr(bytes.into())),
            ProgramEvent::Ended(exit) => Event::End(end(&exit)),
        }
    }
}

/// Returns the end of a program in the words of Go's `os.ProcessState`, which clients show.
fn end(exit: &GuestExit) -> EndEvent {
    match exit {
        GuestExit::Code(code) => {
            let status = format!("exit status {code}");
            let error = (*code != 0).then(|| status.clone());
            EndEvent { exit_code: code.cast_signed(), exited: true, status, error }
        }
        GuestExit::Signal(name) => {
            let status = format!("signal: {}", in_words(name));
            EndEvent { exit_code: -1, exited: false, error: Some(status.clone()), status }
        }
        other => {
            let status = format!("exit status {}", other.code());
            EndEvent { exit_code: other.code().into(), exited: true, error: None, status }
        }
    }
}

fn in_words(signal: &str) -> String {
    match signal {
        "KILL" => "killed".to_owned(),
        "TERM" => "terminated".to_owned(),
        "INT" => "interrupt".to_owned(),
        "HUP" => "hangup".to_owned(),
        "SEGV" => "segmentation fault".to_owned(),
        "ABRT" => "aborted".to_owned(),
        other => other.to_lowercase(),
    }
}

pub(super) async fn update(call: Call, request: UpdateRequest) -> Result<Empty, ConnectError> {
    let program = selected(request.process)?;
    let control = call.sandbox.session().await?.control(program, false).await?;
    if let Some(pty) = request.pty {
        control.resize(size(pty)?).await?;
    }
    control.finish().await?;
    Ok(Empty::default())
}

pub(super) async fn send_input(
    call: Call,
    request: SendInputRequest,
) -> Result<Empty, ConnectError> {
    let program = selected(request.process)?;
    let input = request.input.and_then(|input| input.input);
    let input = input.ok_or_else(|| ConnectError::invalid("there is no input"))?;
    let control = call.sandbox.session().await?.control(program, false).await?;
    control.send(input.into_bytes().into()).await?;
    delivered(control.finish().await?)
}

pub(super) async fn stream_input(
    call: Call,
    mut messages: Messages<StreamInputRequest>,
) -> Result<Empty, ConnectError> {
    let mut control = None;
    while let Some(message) = messages.next().await? {
        match message.event {
            Some(InputEvent::Start(start)) => {
                let program = selected(start.process)?;
                control = Some(call.sandbox.session().await?.control(program, false).await?);
            }
            Some(InputEvent::Data(data)) => {
                let control = control
                    .as_ref()
                    .ok_or_else(|| ConnectError::invalid("data comes before the start"))?;
                if let Some(input) = data.input.and_then(|input| input.input) {
                    control.send(input.into_bytes().into()).await?;
                }
            }
            Some(InputEvent::Keepalive(_)) | None => {}
        }
    }
    let control = control.ok_or_else(|| ConnectError::invalid("there is no start"))?;
    delivered(control.finish().await?)
}

fn delivered(is_taken: bool) -> Result<Empty, ConnectError> {
    if is_taken {
        return Ok(Empty::default());
    }
    let message = "the process does not read its stdin any more, or has none";
    Err(ConnectError::new(Code::FailedPrecondition, message))
}

pub(super) async fn send_signal(
    call: Call,
    request: SendSignalRequest,
) -> Result<Empty, ConnectError> {
    let name = match Signal::try_from(request.signal) {
        Ok(Signal::Sigkill) => "KILL",
        Ok(Signal::Sigterm) => "TERM",
        Ok(Signal::Unspecified) | Err(_) => {
            return Err(ConnectError::invalid("the signal is neither SIGTERM nor SIGKILL"));
        }
    };
    let program = selected(request.process)?;
    let control = call.sandbox.session().await?.control(program, false).await?;
    control.signal(name).await?;
    control.finish().await?;
    Ok(Empty::default())
}

pub(super) async fn close_stdin(
    call: Call,
    request: CloseStdinRequest,
) -> Result<Empty, ConnectError> {
    let program = selected(request.process)?;
    let control = call.sandbox.session().await?.control(program, true).await?;
    // One that is closed already is as wanted.
    control.finish().await?;
    Ok(Empty::default())
}

fn selected(selector: Option<ProcessSelector>) -> Result<KeptProgram, ConnectError> {
    match selector.and_then(|selector| selector.selector) {
        Some(Selector::Pid(pid)) => Ok(KeptProgram::Pid(pid)),
        Some(Selector::Tag(tag)) if !tag.is_empty() => Ok(KeptProgram::Tag(tag)),
        _ => Err(ConnectError::invalid("the request names no process")),
    }
}

fn size(pty: Pty) -> Result<WindowSize, ConnectError> {
    let PtySize { cols, rows } = pty.size.unwrap_or(PtySize { cols: 80, rows: 24 });
    let side = |number: u32| {
        u16::try_from(number).map_err(|_| ConnectError::invalid("the terminal is too large"))
    };
    Ok(WindowSize { columns: side(cols)?, rows: side(rows)? })
}

/// Runs a command to its end, and returns its stdout; for the server's own needs.
///
/// # Errors
/// The guest cannot be reached, or the command fails or takes too long.
pub(super) async fn output(
    sandbox: &Sandbox,
    user: &str,
    arguments: Vec<OsString>,
    limit: Duration,
) -> Result<Vec<u8>, ConnectError> {
    let new = NewProgram { user: user.to_owned(), arguments, ..NewProgram::default() };
    let run = async {
        let mut running = sandbox.session().await?.start(new).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match running.next().await? {
                ProgramEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ProgramEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ProgramEvent::Ended(exit) if exit.is_success() => return Ok(stdout),
                ProgramEvent::Ended(_) => {
                    let message = String::from_utf8_lossy(&stderr).trim().to_owned();
                    return Err(ConnectError::invalid(message));
                }
            }
        }
    };
    tokio::time::timeout(limit, run).await.unwrap_or_else(|_| Err(out_of_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_in_the_words_that_clients_know() {
        let ended = end(&GuestExit::Code(3));
        assert_eq!((ended.exit_code, ended.exited), (3, true));
        assert_eq!(ended.error.as_deref(), Some("exit status 3"));
        assert_eq!(end(&GuestExit::Code(0)).error, None);
        let killed = end(&GuestExit::Signal("KILL".into()));
        assert_eq!(
            (killed.exit_code, killed.exited, &*killed.status),
            (-1, false, "signal: killed")
        );
    }
}
