//! The guest's network, queried through the control port, for a guest that SSH does not reach.

use std::io::{self, ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use castra_wire::{
    AgentTask, Condition, GATEWAY_ADDRESS, GUEST_ADDRESS, GuestMessage, NetworkState, Stage,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::control::{ControlError, ControlPort};
use crate::cancel::Cancel;
use crate::error::{Explain, Kind};
use crate::host::unix_time;

/// Time limit of one query. An idle guest answers within milliseconds, an emulated one on a busy
/// machine within a second.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// Time between two looks at a network that is down: a DHCP client may take it down for a moment.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// A VM and the socket of its control port.
#[derive(Debug, Clone)]
pub struct AgentSocket {
    /// The VM.
    pub vm: String,
    /// Path of QEMU's socket.
    pub path: PathBuf,
}

/// Fault of a guest's network, as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum NetworkFault {
    /// The guest's kernel has no network card.
    NoInterface,
    /// The interface is down.
    InterfaceDown {
        /// Name of the interface in the guest.
        interface: String,
    },
    /// The interface has no carrier.
    NoCarrier {
        /// Name of the interface in the guest.
        interface: String,
    },
    /// The guest does not have its address.
    NoAddress {
        /// The interface that lacks it.
        interface: String,
    },
    /// The guest has no route to the host.
    NoRoute,
    /// The agent sees no fault, but SSH stays silent.
    Silent,
}

/// Error for a guest that runs but cannot be reached by SSH.
#[derive(Debug, thiserror::Error)]
#[error("the guest of VM `{vm}` is running, but its network is down: {}", fault.in_words())]
pub struct NetworkDown {
    /// The VM.
    pub vm: String,
    /// Fault of its network.
    pub fault: NetworkFault,
}

impl NetworkFault {
    /// Returns the first missing part; `None` if the network is complete.
    fn of(state: NetworkState) -> Option<Self> {
        let Some(interface) = state.interface else { return Some(Self::NoInterface) };
        match (state.is_up, state.has_carrier, state.has_address, state.has_route) {
            (false, ..) => Some(Self::InterfaceDown { interface }),
            (_, false, ..) => Some(Self::NoCarrier { interface }),
            (_, _, false, _) => Some(Self::NoAddress { interface }),
            (.., false) => Some(Self::NoRoute),
            _ => None,
        }
    }

    /// Describes the fault.
    pub fn in_words(&self) -> String {
        match self {
            Self::NoInterface => "its kernel has no network card".to_owned(),
            Self::InterfaceDown { interface } => format!("the interface {interface} is down"),
            Self::NoCarrier { interface } => format!("the interface {interface} has no carrier"),
            Self::NoAddress { interface } => {
                format!(
                    "the interface {interface} does not have the address {}",
                    dotted(GUEST_ADDRESS)
                )
            }
            Self::NoRoute => format!("it has no route to the host ({})", dotted(GATEWAY_ADDRESS)),
            Self::Silent => {
                "its agent responds but its SSH port does not, as behind a firewall".to_owned()
            }
        }
    }

    /// Returns the remedy for the VM of this name.
    pub fn way_out(&self, vm: &str) -> String {
        let inside = match self {
            Self::InterfaceDown { interface } => {
                format!("Inside, `ip link set {interface} up` fixes it")
            }
            Self::Silent => "Look at its firewall rules".to_owned(),
            _ => "Look inside".to_owned(),
        };
        // A VM that an earlier castra started has no stream ports, so its shell needs the network.
        format!(
            "{inside}: `castra shell {vm}` needs no network, and `castra console {vm}` may have a \
            login. `castra restart {vm}` starts it again."
        )
    }
}

impl Explain for NetworkDown {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn hint(&self) -> Option<String> {
        Some(self.fault.way_out(&self.vm))
    }
}

/// Condition of a guest, and its clock compared with this machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Condition, as reported by the agent.
    pub condition: Condition,
    /// Milliseconds by which the guest's clock is ahead of this machine's, with an uncertainty of
    /// half the round trip.
    pub clock_ahead_ms: i64,
}

impl Inspection {
    fn new(condition: Condition, asked: Duration, answered: Duration) -> Self {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let guest_ms = ms(Duration::from_nanos(condition.time_unix_ns));
        let clock_ahead_ms = guest_ms.saturating_sub(ms((asked + answered) / 2));
        Self { condition, clock_ahead_ms }
    }
}

/// Reason why a guest's condition is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoInspection {
    /// The guest has sent nothing within the limit.
    Silent,
    /// The guest has not finished its boot, is slow, or has an agent that predates the query; or
    /// its control port cannot be used.
    Unknown,
}

impl From<ControlError> for NoInspection {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::ReadTimeout | ControlError::WriteTimeout => Self::Silent,
            _ => Self::Unknown,
        }
    }
}

/// Queries a guest's condition.
///
/// # Errors
/// Returns the reason why it is not known.
pub fn inspect(
    control: &Path,
    limit: Duration,
    cancel: &Cancel,
) -> Result<Inspection, NoInspection> {
    // The socket was created before QEMU started: once it is gone, it does not come back.
    if !control.try_exists().unwrap_or(false) {
        return Err(NoInspection::Unknown);
    }
    let deadline = Instant::now() + limit;
    let mut port = ControlPort::connect(control, deadline, cancel)?;
    port.attach()?;
    let mut message = port.next(deadline)?;
    let mut asked = None;
    loop {
        match (message, asked) {
            (GuestMessage::Hello { personalised, stages, .. }, None) => {
                if !personalised || stages.iter().all(|reached| reached.stage != Stage::Ready) {
                    return Err(NoInspection::Unknown);
                }
                asked = Some(unix_time());
                port.inspect()?;
            }
            (GuestMessage::Inspected(condition), Some(asked)) => {
                return Ok(Inspection::new(condition, asked, unix_time()));
            }
            (GuestMessage::Failed { task: AgentTask::Protocol, .. }, Some(_)) => {
                return Err(NoInspection::Unknown);
            }
            _ => {}
        }
        // It has sent something, so it is not silent.
        message = port.next(deadline).map_err(|_| NoInspection::Unknown)?;
    }
}

/// A guest's report about its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkReport {
    /// The guest gives no report: see [`inspect`].
    Unknown,
    /// The network is complete.
    Complete,
    /// The network has a fault.
    Faulty(NetworkFault),
}

impl NetworkReport {
    /// Evaluates a guest's condition.
    pub fn of(inspection: Option<&Inspection>) -> Self {
        match inspection.and_then(|found| found.condition.network.clone()).map(NetworkFault::of) {
            None => Self::Unknown,
            Some(None) => Self::Complete,
            Some(Some(fault)) => Self::Faulty(fault),
        }
    }

    /// Asks a guest about its network; asks a second time if there is a fault, since it may pass.
    ///
    /// # Errors
    /// [`ControlError::Interrupted`].
    pub fn ask(control: &Path, cancel: &Cancel) -> Result<Self, ControlError> {
        let first = Self::of(inspect(control, ASK_LIMIT, cancel).ok().as_ref());
        cancel.check()?;
        if !matches!(first, Self::Faulty(_)) {
            return Ok(first);
        }
        thread::sleep(SECOND_LOOK);
        let second = Self::of(inspect(control, ASK_LIMIT, cancel).ok().as_ref());
        cancel.check()?;
        // A network whose fault changes is being repaired.
        Ok(if matches!(second, Self::Faulty(_)) && second != first {
            Self::Unknown
        } else {
            second
        })
    }
}

/// Time in which an SSH server greets a client: it needs no more than the agent's answers, which
/// come from the same thread.
const GREETING_LIMIT: Duration = Duration::from_secs(3);

/// Returns `true` if the guest's SSH server accepts connections and greets no client, as behind a
/// firewall: QEMU accepts them for a guest that does not. Waits at most some seconds.
pub fn is_ssh_silent(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, GREETING_LIMIT) else { return false };
    let greeted =
        stream.set_read_timeout(Some(GREETING_LIMIT)).and_then(|()| stream.read_exact(&mut [0]));
    let is_late =
        |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    greeted.is_err_and(|error| is_late(&error))
}

fn dotted([a, b, c, d]: [u8; 4]) -> String {
    format!("{a}.{b}.{c}.{d}")
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    use castra_wire::{HostMessage, StageReached};

    use super::*;

    fn condition(time_unix_ns: u64, network: Option<NetworkState>) -> Condition {
        Condition { time_unix_ns, network, cloud_init: None, disk_faults: Vec::new() }
    }

    fn complete() -> NetworkState {
        let interface = Some("eth0".to_owned());
        NetworkState {
            interface,
            is_up: true,
            has_carrier: true,
            has_address: true,
            has_route: true,
        }
    }

    /// Inspects a guest that has reached this stage and answers with `answer`. Returns the requests
    /// it received and the result.
    fn inspect_guest(
        stage: Stage,
        answer: impl Fn() -> GuestMessage + Send + 'static,
    ) -> (Vec<HostMessage>, Result<Inspection, NoInspection>) {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("control.sock");
        let listener = UnixListener::bind(&socket).expect("binds");
        let guest = thread::spawn(move || {
            let mut stream = listener.accept().expect("accepts").0;
            let lines = BufReader::new(stream.try_clone().expect("clones")).lines();
            let mut heard = Vec::new();
            for line in lines.map_while(Result::ok).filter(|line| !line.is_empty()) {
                let message =
                    castra_wire::decode::<HostMessage>(line.as_bytes()).expect("a message");
                let answer = if message == HostMessage::Attach { hello(stage) } else { answer() };
                heard.push(message);
                // A host that has heard enough closes its end.
                let _ = stream.write_all(&castra_wire::encode(&answer));
            }
            heard
        });
        let inspection = inspect(&socket, Duration::from_secs(60), &Cancel::new());
        (guest.join().expect("the guest plays its part"), inspection)
    }

    fn hello(stage: Stage) -> GuestMessage {
        GuestMessage::Hello {
            protocol: castra_wire::PROTOCOL_VERSION,
            agent_version: "0".into(),
            kernel: "6".into(),
            personalised: true,
            stages: vec![StageReached { stage, uptime_ms: 1 }],
            uptime_ms: None,
            root_mounted_ms: None,
        }
    }

    #[test]
    fn a_guest_that_is_ready_reports_its_condition() {
        let condition = || condition(0, Some(complete()));
        let (_, inspection) =
            inspect_guest(Stage::Ready, move || GuestMessage::Inspected(condition()));
        assert_eq!(NetworkReport::of(inspection.ok().as_ref()), NetworkReport::Complete);
    }

    #[test]
    fn a_guest_that_boots_is_not_asked() {
        let down = || NetworkState { is_up: false, ..complete() };
        let condition = move || condition(0, Some(down()));
        let (heard, inspection) =
            inspect_guest(Stage::Root, move || GuestMessage::Inspected(condition()));
        let unknown = Err(NoInspection::Unknown);
        assert_eq!((heard, inspection), (vec![HostMessage::Attach], unknown));
    }

    #[test]
    fn an_older_agent_says_nothing() {
        let unknown =
            || GuestMessage::Failed { task: AgentTask::Protocol, reason: "unknown".into() };
        let (heard, inspection) = inspect_guest(Stage::Ready, unknown);
        let requests = vec![HostMessage::Attach, HostMessage::Inspect];
        assert_eq!((heard, inspection), (requests, Err(NoInspection::Unknown)));
    }

    #[test]
    fn a_guest_that_takes_what_it_is_sent_and_does_not_answer_is_silent() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("control.sock");
        let inspect = || inspect(&socket, Duration::from_millis(10), &Cancel::new());
        assert_eq!(inspect(), Err(NoInspection::Unknown), "without a socket");
        let _listener = UnixListener::bind(&socket).expect("binds");
        assert_eq!(inspect(), Err(NoInspection::Silent));
    }

    #[test]
    fn clocks_are_compared_at_the_middle_of_question_and_answer() {
        let condition = |ms: u64| condition(ms * 1_000_000, None);
        let ahead = |ms| {
            let (asked, answered) = (Duration::from_millis(50_000), Duration::from_millis(50_400));
            Inspection::new(condition(ms), asked, answered).clock_ahead_ms
        };
        assert_eq!(ahead(50_200), 0);
        assert_eq!(ahead(10_200), -40_000);
        assert_eq!(ahead(53_200), 3000);
    }

    #[test]
    fn the_first_thing_that_is_missing_is_reported() {
        let interface = || "eth0".to_owned();
        assert_eq!(NetworkFault::of(complete()), None);
        let down =
            NetworkState { is_up: false, has_carrier: false, has_route: false, ..complete() };
        assert_eq!(
            NetworkFault::of(down),
            Some(NetworkFault::InterfaceDown { interface: interface() })
        );
        let unplugged = NetworkState { has_carrier: false, has_route: false, ..complete() };
        assert_eq!(
            NetworkFault::of(unplugged),
            Some(NetworkFault::NoCarrier { interface: interface() })
        );
        let flushed = NetworkState { has_address: false, has_route: false, ..complete() };
        assert_eq!(
            NetworkFault::of(flushed),
            Some(NetworkFault::NoAddress { interface: interface() })
        );
        let lost = NetworkState { has_route: false, ..complete() };
        assert_eq!(NetworkFault::of(lost), Some(NetworkFault::NoRoute));
        let gone = NetworkState { interface: None, ..complete() };
        assert_eq!(NetworkFault::of(gone), Some(NetworkFault::NoInterface));
    }
}
