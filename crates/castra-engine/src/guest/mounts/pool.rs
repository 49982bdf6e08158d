//! Threads that answer the requests of one mount.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use bytes::Bytes;
use castra_fuse::{Access, Changes, Directory, MAX_WATCHES, Owner, Server, Shortage, refusal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc as channel, oneshot};

use super::Mount;
use super::place::Place;
use crate::guest::companion::limit_thread;

/// Number of threads: one that waits for a disk holds up no other request.
const THREADS: usize = 4;

/// Maximum number of requests that have been taken and are not answered. The guest's kernel sends
/// about a dozen at a time, a hostile one any number.
const MAX_REQUESTS: usize = 64;

/// Owner of all files, as the guest sees them: its root. What its users may do is what the user of
/// this machine may.
const OWNER: Owner = Owner { uid: 0, gid: 0 };

// The guest's agent keeps any state that a server makes.
const _: () = assert!(castra_fuse::MAX_STATE <= castra_wire::MAX_MOUNT_STATE_BYTES);

/// Answers the requests of one mount on threads of their own. They end once this is dropped.
pub(super) struct Pool {
    server: Arc<Server>,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    notification: Notification,
    /// Set if the agent does not know changes.
    is_unheard: AtomicBool,
}

/// Notification of the guest of changes that the host makes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Notification {
    /// The user does not want it.
    Unwanted,
    Begun,
    /// The kernel allows the user no more queues.
    Refused,
}

/// Work for a thread, which is confined to the directory.
enum Job {
    /// A request of the guest's kernel.
    Request { request: Bytes, answers: Answers, permit: OwnedSemaphorePermit },
    /// Taking over the state of an earlier process's server.
    Restore(Vec<u8>, oneshot::Sender<()>),
    /// Returning the next changes of the host.
    Changes(oneshot::Sender<Changes>),
}

/// Way for answers to the guest; `None` if the request has none.
type Answers = Option<channel::UnboundedSender<Answer>>;

/// A message for the guest's kernel.
pub(super) enum Answer {
    /// A notification, which precedes the reply of its request.
    Notice(Vec<u8>),
    /// The reply, and its request's permit, by which the request counts until the reply is sent.
    Reply(Vec<u8>, OwnedSemaphorePermit),
}

impl Pool {
    /// Opens a mount's directory, in which others are hidden, and starts the threads.
    ///
    /// # Errors
    /// Fails if the directory cannot be opened, or a thread cannot be started.
    pub(super) fn start(mount: &Mount, hidden: &[PathBuf]) -> io::Result<Self> {
        let access = if mount.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let place = Place::open(mount)?;
        let mut directory = Directory::open(&place.path(), access, OWNER)?;
        hidden.iter().for_each(|path| directory.hide(path));
        let mut server = Server::new(directory);
        let notification = match mount.notify.then(|| server.watch(MAX_WATCHES)) {
            None => Notification::Unwanted,
            Some(Ok(())) => Notification::Begun,
            Some(Err(_)) => Notification::Refused,
        };
        let server = Arc::new(server);
        let place = Arc::new(place);
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let (server, queue, place) =
                (Arc::clone(&server), Arc::clone(&queue), Arc::clone(&place));
            let is_read_only = mount.read_only;
            thread::Builder::new().name("castra-mount".to_owned()).spawn(move || {
                limit_thread(&place.path(), is_read_only);
                drop(place);
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let (request, answers, permit) = match next {
                        Ok(Job::Request { request, answers, permit }) => (request, answers, permit),
                        Ok(Job::Restore(state, done)) => {
                            restore(&server, &state);
                            let _ = done.send(());
                            continue;
                        }
                        Ok(Job::Changes(taken)) => {
                            let changes = catch_unwind(AssertUnwindSafe(|| server.changes()));
                            let _ = changes.map(|changes| taken.send(changes));
                            continue;
                        }
                        Err(_) => return,
                    };
                    // Sending fails if the guest's agent is gone.
                    let send = |answer| drop(answers.as_ref().map(|answers| answers.send(answer)));
                    let notify = |notice| send(Answer::Notice(notice));
                    let answer = || server.answer_with(&request, &notify);
                    let answered = catch_unwind(AssertUnwindSafe(answer));
                    if let Some(reply) = answered.unwrap_or_else(|_| refusal(&request)) {
                        send(Answer::Reply(reply, permit));
                    }
                }
            })?;
        }
        let room = Arc::new(Semaphore::new(MAX_REQUESTS));
        Ok(Self { server, jobs, room, notification, is_unheard: AtomicBool::new(false) })
    }

    /// Returns a descriptor that is readable when the host has made changes; `None` if the guest is
    /// not notified of them.
    pub(super) fn watched(&self) -> Option<AsyncFd<OwnedFd>> {
        let is_heard = !self.is_unheard.load(Ordering::Relaxed);
        let queue = self.server.watched().filter(|_| is_heard)?;
        #[expect(unsafe_code, reason = "tokio cannot know whether a type changes its descriptor")]
        // SAFETY: an OwnedFd keeps its descriptor open and never changes its number.
        unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE) }.ok()
    }

    /// Returns the next changes of the host; `None` if the thread has panicked.
    pub(super) async fn changes(&self) -> Option<Changes> {
        let (sender, taken) = oneshot::channel();
        let _ = self.jobs.send(Job::Changes(sender));
        taken.await.ok()
    }

    /// Notes if the agent knows changes.
    pub(super) fn set_heard(&self, is_heard: bool) {
        self.is_unheard.store(!is_heard, Ordering::Relaxed);
    }

    /// Returns the reason why the guest's programs are not notified of all changes.
    pub(super) fn unnotified(&self) -> Option<String> {
        match self.notification {
            Notification::Unwanted => return None,
            Notification::Refused => {
                return Some(
                    "this machine gives no more inotify instances \
                    (fs.inotify.max_user_instances)"
                        .to_owned(),
                );
            }
            Notification::Begun => {}
        }
        if self.is_unheard.load(Ordering::Relaxed) {
            return Some("the VM was started by an earlier castra".to_owned());
        }
        self.server.shortage().map(|shortage| match shortage {
            Shortage::Process => format!(
                "the VM uses more than {MAX_WATCHES} directories, and those used longest ago are \
                not watched"
            ),
            Shortage::Host => {
                "this machine gives no more inotify watches (fs.inotify.max_user_watches)"
                    .to_owned()
            }
        })
    }

    /// Returns the state for the server of the next process, once everything is carried out; `None`
    /// if it would be too long.
    pub(super) async fn save(&self) -> Option<Vec<u8>> {
        let all = u32::try_from(MAX_REQUESTS).unwrap_or(u32::MAX);
        let _all = self.room.acquire_many(all).await;
        self.server.save()
    }

    /// Forgets what the guest's kernel knew: it is another one.
    pub(super) fn forget(&self) {
        self.server.forget_all();
    }

    /// Takes over the state of an earlier process's server. Must come before the first request.
    pub(super) async fn restore(&self, state: Vec<u8>) {
        let (done, restored) = oneshot::channel();
        let _ = self.jobs.send(Job::Restore(state, done));
        // Fails if the thread has panicked, and then this server has its own state.
        let _ = restored.await;
    }

    /// Has a request carried out, and answered if there is a way for answers. Waits while too many
    /// are.
    pub(super) async fn carry_out(&self, request: Bytes, answers: Answers) {
        // Fails only if the semaphore is closed, which it never is.
        let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return };
        // The threads end after this.
        let _ = self.jobs.send(Job::Request { request, answers, permit });
    }
}

/// Has a server take over a state, unless that is of no use: it comes from the guest.
fn restore(server: &Server, state: &[u8]) {
    let restored = catch_unwind(AssertUnwindSafe(|| server.restore(state)));
    if let Ok(Err(error)) = restored {
        tracing::debug!(%error, "what the guest has open in a mount is stale");
    }
}
