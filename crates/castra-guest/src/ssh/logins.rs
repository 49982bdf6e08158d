//! Connections that have not logged in yet, whose number is limited: any program of the guest and
//! any user of the host can open some, and each takes a descriptor that commands need as well.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use castra_flow::Flow;

/// Maximum number of connections that have not logged in. A client of the owner's needs a fraction
/// of a second for that; `sshd` has a hundred (`MaxStartups`).
const MAX_LOGINS: usize = 64;

/// Connection that logs in.
pub(super) struct Login {
    pub(super) flow: Flow,
    /// Set by the connection once it has logged in.
    pub(super) logged_in: Arc<AtomicBool>,
}

/// Connections that log in, the oldest first.
#[derive(Default)]
pub(super) struct Logins(VecDeque<(Weak<AtomicBool>, Flow)>);

impl Logins {
    /// Adds a connection. Ends the one that has been logging in for the longest time if there are
    /// too many.
    pub(super) fn add(&mut self) -> Login {
        self.0.retain(|(logged_in, _)| {
            logged_in.upgrade().is_some_and(|logged_in| !logged_in.load(Ordering::Relaxed))
        });
        if self.0.len() >= MAX_LOGINS
            && let Some((_, oldest)) = self.0.pop_front()
        {
            oldest.abort();
        }
        let login = Login { flow: Flow::of_server(), logged_in: Arc::new(AtomicBool::new(false)) };
        self.0.push_back((Arc::downgrade(&login.logged_in), login.flow.clone()));
        login
    }
}
