//! Ports that find themselves: what listens in the guest is forwarded as long as it listens.
//!
//! A hostile guest may claim any number of listeners, and change them at any rate. So reports are
//! read at intervals, each names a bounded number of ports, and so many are forwarded at most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use castra_flow::link::Link;
use castra_flow::{Incoming, Message, Outgoing};
use castra_wire::stream::{Refusal, Target};
use castra_wire::{ListenerReport, ListenerReports};
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;

use super::forwards::{Listening, Ways};
use super::{AutoPlan, LiveForward, LiveOrigin, LivePort, LiveState};

/// Maximum number of ports of a VM that are forwarded by themselves.
const MAX_AUTO_FORWARDS: usize = 128;

/// Pause between two reports of a guest.
const REPORT_PAUSE: Duration = Duration::from_millis(300);

/// Ports of this machine that are tried for one of the guest, before any that is free.
const ATTEMPTS: u16 = 20;

/// Ports of this machine below this one need root's rights.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// Distance from those to the first port that is tried: 80 becomes 8080, 443 becomes 8443.
const PRIVILEGED_DISTANCE: u16 = 8000;

/// Maximum number of ports of the guest whose ports of this machine are remembered.
const MAX_REMEMBERED: usize = 1024;

/// Forwards that follow what listens in the guest.
#[derive(Default)]
pub(super) struct Auto {
    /// Ports of the guest that are not forwarded.
    skip: BTreeSet<u16>,
    /// Ports of this machine that are left free.
    avoid: BTreeSet<u16>,
    /// Open ports of this machine, by the guest's port.
    open: BTreeMap<u16, (u16, Listening)>,
    remembered: BTreeMap<u16, Remembered>,
    trouble: Option<String>,
}

/// Port of this machine that a port of the guest had.
struct Remembered {
    host: u16,
    /// Set once the user knows of it.
    is_announced: bool,
}

/// Follows what listens in the guest, in each session with its agent. Signals the first report.
pub(super) async fn follow(auto: Arc<Mutex<Auto>>, mut ways: Ways, reported: watch::Sender<bool>) {
    while let Some(link) = ways.session().await {
        if let Some(trouble) = follow_session(&link, &auto, &ways, &reported).await {
            auto.lock().await.trouble = Some(trouble.to_owned());
            reported.send_replace(true);
        }
        ways.end_of_session().await;
    }
}

/// Follows the reports of one session. Returns the reason why there are none.
async fn follow_session(
    link: &Link,
    auto: &Mutex<Auto>,
    ways: &Ways,
    reported: &watch::Sender<bool>,
) -> Option<&'static str> {
    let (incoming, outgoing) = link.open(Target::Listeners.encode().ok()?).ok()?;
    let (mut incoming, _outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
    match incoming.next().await? {
        Message::Opened => {}
        Message::Refused(Refusal::Malformed) => {
            return Some("it was started by an earlier castra, whose agent reports no listeners");
        }
        _ => return Some("the guest's agent does not report what listens"),
    }
    let mut reports = ListenerReports::default();
    while let Message::Data(data) = incoming.next().await? {
        reports.push(&data);
        drop(data);
        match reports.newest() {
            Ok(None) => {}
            Ok(Some(report)) => {
                auto.lock().await.adopt(&report, ways).await;
                reported.send_replace(true);
                sleep(REPORT_PAUSE).await;
            }
            Err(_) => return Some("the guest's agent does not report what listens"),
        }
    }
    None
}

impl Auto {
    /// Takes over a plan, without those ports of the guest that the user has added.
    pub(super) async fn plan(&mut self, plan: &AutoPlan, added: &[LiveForward]) {
        let skip: BTreeSet<u16> =
            plan.skip.iter().copied().chain(added.iter().map(|one| one.guest)).collect();
        for LiveForward { host, guest } in plan.last.iter().take(MAX_AUTO_FORWARDS) {
            let remembered = Remembered { host: *host, is_announced: false };
            self.remembered.entry(*guest).or_insert(remembered);
        }
        self.close(|guest| skip.contains(&guest)).await;
        self.skip = skip;
        self.avoid = plan.avoid.iter().copied().collect();
    }

    /// Closes the forwards of some ports of the guest.
    pub(super) async fn close(&mut self, is_meant: impl Fn(u16) -> bool) {
        let guests: Vec<u16> = self.open.keys().copied().filter(|port| is_meant(*port)).collect();
        for guest in guests {
            if let Some((_, listening)) = self.open.remove(&guest) {
                listening.close().await;
            }
        }
    }

    /// Opens a forward for each port of a report, and closes all others.
    async fn adopt(&mut self, report: &ListenerReport, ways: &Ways) {
        let ports = report.ports.iter().copied();
        let wanted: BTreeSet<u16> = ports.filter(|port| !self.skip.contains(port)).collect();
        // What is missing in a report that is cut may listen all the same.
        self.close(|guest| !report.is_cut && !wanted.contains(&guest)).await;
        let too_many = || Some(format!("no more than {MAX_AUTO_FORWARDS} ports are forwarded"));
        self.trouble = if report.is_cut { too_many() } else { None };
        for guest in wanted {
            if self.open.contains_key(&guest) {
                continue;
            }
            if self.open.len() >= MAX_AUTO_FORWARDS {
                self.trouble = too_many();
                break;
            }
            let last = self.remembered.get(&guest).map(|remembered| remembered.host);
            let mut hosts = candidates(guest, last).filter(|host| !self.avoid.contains(host));
            let opened = hosts.find_map(|host| ways.listen(host, guest).ok());
            let Some((host, listening)) = opened else {
                self.trouble = Some(format!("no port is free for port {guest}"));
                continue;
            };
            self.remember(guest, host);
            self.open.insert(guest, (host, listening));
        }
    }

    fn remember(&mut self, guest: u16, host: u16) {
        if self.remembered.get(&guest).is_some_and(|remembered| remembered.host == host) {
            return;
        }
        if self.remembered.len() >= MAX_REMEMBERED {
            let open = &self.open;
            self.remembered.retain(|guest, _| open.contains_key(guest));
        }
        self.remembered.insert(guest, Remembered { host, is_announced: false });
    }

    /// Returns the open forwards. With `is_announced`, all count as announced.
    pub(super) fn list(&mut self, is_announced: bool) -> Vec<LivePort> {
        let mut ports = Vec::new();
        for (guest, (host, _)) in &self.open {
            let remembered = self.remembered.get_mut(guest);
            let is_new = remembered.is_some_and(|remembered| {
                let is_new = !remembered.is_announced;
                remembered.is_announced |= is_announced;
                is_new
            });
            let forward = LiveForward { host: *host, guest: *guest };
            let (origin, state) = (LiveOrigin::Auto, LiveState::Open);
            ports.push(LivePort { forward, origin, state, is_new });
        }
        ports
    }

    /// Returns the reason why something that listens is not forwarded.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }
}

/// Returns the ports of this machine to try for one of the guest: that of the last time, the same
/// one or the next ones, and any.
fn candidates(guest: u16, last: Option<u16>) -> impl Iterator<Item = u16> {
    let first = match guest {
        0..FIRST_UNPRIVILEGED => guest + PRIVILEGED_DISTANCE,
        _ => guest,
    };
    let last = last.filter(|port| *port >= FIRST_UNPRIVILEGED);
    last.into_iter().chain((first..=u16::MAX).take(usize::from(ATTEMPTS))).chain([0])
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::guest::ports::PortPlan;
    use crate::guest::ports::forwards::Forwards;

    fn report(ports: impl IntoIterator<Item = u16>) -> ListenerReport {
        ListenerReport { ports: ports.into_iter().collect(), is_cut: false }
    }

    fn ways() -> Ways {
        Forwards::new(watch::Sender::new(None).subscribe()).ways().clone()
    }

    /// Returns consecutive ports that are free now.
    fn free_ports(count: u16) -> u16 {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
        let first = || bind(0).expect("bound").local_addr().expect("an address").port();
        let are_free = |port: u16| (0..count).all(|more| bind(port.saturating_add(more)).is_some());
        std::iter::repeat_with(first).find(|port| are_free(*port)).expect("free ones")
    }

    #[test]
    fn the_same_port_is_tried_first_and_never_a_privileged_one() {
        let first = |guest, last| candidates(guest, last).take(3).collect::<Vec<_>>();
        assert_eq!(first(3000, None), [3000, 3001, 3002]);
        assert_eq!(first(80, None), [8080, 8081, 8082]);
        assert_eq!(first(3000, Some(3005)), [3005, 3000, 3001]);
        assert_eq!(first(3000, Some(80)), [3000, 3001, 3002]);
        assert_eq!(first(65535, None), [65535, 0]);
        for guest in 1..=u16::MAX {
            assert!(candidates(guest, Some(guest)).all(|port| port == 0 || port >= 1024));
            assert!(candidates(guest, None).count() <= 21);
        }
    }

    #[tokio::test]
    async fn forwards_come_and_go_with_their_listeners() {
        let (mut auto, ways) = (Auto::default(), ways());
        let port = free_ports(3);
        auto.adopt(&report([port]), &ways).await;
        let listed = auto.list(true);
        assert_eq!(listed[0].forward, LiveForward { host: port, guest: port });
        assert!(listed[0].is_new && !auto.list(true)[0].is_new, "announced once");
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect_err("it is open").kind();
        assert_eq!(held, std::io::ErrorKind::AddrInUse);

        auto.adopt(&report([]), &ways).await;
        assert_eq!(auto.list(true), []);
        let _holder = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("closed");
        auto.adopt(&report([port]), &ways).await;
        let listed = auto.list(true);
        assert!(listed[0].forward.host != port && listed[0].is_new, "{listed:?}");
        // What the user has added or closed is left alone.
        let plan = AutoPlan { skip: vec![port], ..AutoPlan::default() };
        auto.plan(&plan, &[]).await;
        assert_eq!(auto.list(true), []);
        auto.adopt(&report([port]), &ways).await;
        assert_eq!(auto.list(true), []);
    }

    #[tokio::test]
    async fn a_guest_that_listens_everywhere_gets_so_many() {
        let (mut auto, ways) = (Auto::default(), ways());
        for first in [1024, 30_000, 1, 60_000] {
            auto.adopt(&report(first..first + 300), &ways).await;
            assert_eq!(auto.list(false).len(), MAX_AUTO_FORWARDS);
            assert!(auto.trouble().is_some_and(|trouble| trouble.contains("no more than 128")));
            assert!(auto.remembered.len() <= MAX_REMEMBERED);
        }
        for round in 0..20_u16 {
            auto.adopt(&report(round * 200 + 1024..round * 200 + 1152), &ways).await;
            assert!(auto.remembered.len() <= MAX_REMEMBERED);
        }
        auto.adopt(&report([]), &ways).await;
        assert_eq!(auto.trouble(), None);
    }

    #[tokio::test]
    async fn a_report_that_is_cut_closes_nothing() {
        let (mut auto, ways) = (Auto::default(), ways());
        let port = free_ports(1);
        auto.adopt(&report([port]), &ways).await;
        let open = auto.list(false);
        auto.adopt(&ListenerReport { ports: Vec::new(), is_cut: true }, &ways).await;
        assert_eq!(auto.list(false), open);
        auto.adopt(&report([]), &ways).await;
        assert_eq!(auto.list(false), []);
    }

    #[tokio::test]
    async fn ports_that_others_declare_are_left_free() {
        let (mut auto, ways) = (Auto::default(), ways());
        let port = free_ports(2);
        auto.plan(&AutoPlan { avoid: vec![port], ..AutoPlan::default() }, &[]).await;
        auto.adopt(&report([port]), &ways).await;
        assert_ne!(auto.list(false)[0].forward.host, port);
    }

    #[tokio::test]
    async fn a_resumed_vm_gets_its_ports_again() {
        let (mut auto, ways) = (Auto::default(), ways());
        let port = free_ports(1);
        let last = LiveForward { host: port, guest: 80 };
        auto.plan(&AutoPlan { last: vec![last], ..AutoPlan::default() }, &[]).await;
        auto.adopt(&report([80]), &ways).await;
        assert_eq!(auto.list(false)[0].forward, last);
        assert_eq!(PortPlan::default().auto, None);
    }
}
