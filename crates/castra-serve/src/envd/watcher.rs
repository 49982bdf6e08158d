//! Watches of directories: as a stream, and polled.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use castra_engine::session::{FileEvent, FileEventKind, Watch};
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval_at};

use super::enter::Call;
use super::entry::Files;
use super::error::{Code, ConnectError};
use super::messages::filesystem::{
    CreateWatcherResponse, EventType, FileType, FilesystemEvent, WatchDirResponse, WatchEvent,
    WatchRequest, WatcherEventsResponse, WatcherRequest,
};
use super::messages::process::Empty;
use crate::random;

/// Most watches of a sandbox that are polled, and most events of one that wait for that.
const MAX_WATCHERS: usize = 64;
const MAX_EVENTS: usize = 10_000;

/// A watch that its client polls. Ends when it is dropped.
pub(crate) struct Watcher {
    events: Arc<Mutex<Waiting>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<FilesystemEvent>,
    /// Reason why no more come.
    end: Option<ConnectError>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn open(call: &Call, request: WatchRequest) -> Result<Watch, ConnectError> {
    if request.include_entry {
        let message = "entries in events are not supported";
        return Err(ConnectError::new(Code::Unimplemented, message));
    }
    let files = Files::open(&call.sandbox, &call.user).await?;
    let path = files.absolute(&request.path).await?;
    match files.kind(&path).await? {
        Some(FileType::Directory) => {}
        Some(_) => return Err(ConnectError::invalid(format!("{path} is not a directory"))),
        None => {
            return Err(ConnectError::new(Code::NotFound, format!("{path}: no such directory")));
        }
    }
    let session = call.sandbox.session().await?;
    Ok(session.watch(&call.user, path.into(), request.recursive).await?)
}

/// Returns an event as clients know it. One that only says that others are lost ends a watch.
fn shown(event: &FileEvent) -> Result<FilesystemEvent, ConnectError> {
    let kind = match event.kind {
        FileEventKind::Created => EventType::Create,
        FileEventKind::Written => EventType::Write,
        FileEventKind::Removed => EventType::Remove,
        FileEventKind::Renamed => EventType::Rename,
        FileEventKind::Attributes => EventType::Chmod,
        FileEventKind::Lost => {
            let message = "more has changed than the guest could report";
            return Err(ConnectError::new(Code::ResourceExhausted, message));
        }
    };
    let name = String::from_utf8_lossy(&event.path).into_owned();
    Ok(FilesystemEvent { name, kind: kind as i32 })
}

pub(super) async fn watch_dir(
    call: Call,
    request: WatchRequest,
) -> Result<impl Stream<Item = Result<WatchDirResponse, ConnectError>> + use<>, ConnectError> {
    let watch = open(&call, request).await?;
    let signs = interval_at(Instant::now() + call.keepalive, call.keepalive);
    let begun = (watch, signs, Some(WatchEvent::Start(Empty::default())), false);
    Ok(unfold(begun, |(mut watch, mut signs, first, has_ended)| async move {
        if has_ended {
            return None;
        }
        let event = match first {
            Some(event) => Ok(event),
            None => tokio::select! {
                event = watch.next() => event
                    .map_err(ConnectError::from)
                    .and_then(|event| shown(&event))
                    .map(WatchEvent::Filesystem),
                _ = signs.tick() => Ok(WatchEvent::Keepalive(Empty::default())),
            },
        };
        let has_ended = event.is_err();
        let answer = event.map(|event| WatchDirResponse { event: Some(event) });
        Some((answer, (watch, signs, None, has_ended)))
    }))
}

pub(super) async fn create(
    call: Call,
    request: WatchRequest,
) -> Result<CreateWatcherResponse, ConnectError> {
    let mut watch = open(&call, request).await?;
    let events = Arc::<Mutex<Waiting>>::default();
    let task = tokio::spawn({
        let waiting = Arc::clone(&events);
        async move {
            loop {
                let event =
                    watch.next().await.map_err(ConnectError::from).and_then(|event| shown(&event));
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(_) if waiting.events.len() >= MAX_EVENTS => {
                        let message = format!("more than {MAX_EVENTS} events have waited");
                        waiting.end = Some(ConnectError::new(Code::ResourceExhausted, message));
                        return;
                    }
                    Ok(event) => waiting.events.push_back(event),
                    Err(error) => {
                        waiting.end = Some(error);
                        return;
                    }
                }
            }
        }
    });
    let watcher_id =
        random::name().map_err(|error| ConnectError::new(Code::Internal, error.to_string()))?;
    let mut watchers = call.sandbox.watchers.lock().unwrap_or_else(PoisonError::into_inner);
    if watchers.len() >= MAX_WATCHERS {
        task.abort();
        let message = format!("a sandbox has at most {MAX_WATCHERS} watchers");
        return Err(ConnectError::new(Code::ResourceExhausted, message));
    }
    watchers.insert(watcher_id.clone(), Arc::new(Watcher { events, task }));
    Ok(CreateWatcherResponse { watcher_id })
}

pub(super) async fn events(
    call: Call,
    request: WatcherRequest,
) -> Result<WatcherEventsResponse, ConnectError> {
    let watchers = call.sandbox.watchers.lock().unwrap_or_else(PoisonError::into_inner);
    let watcher = watchers.get(&request.watcher_id).cloned();
    drop(watchers);
    let watcher = watcher.ok_or_else(|| missing(&request.watcher_id))?;
    let mut waiting = watcher.events.lock().unwrap_or_else(PoisonError::into_inner);
    match (&waiting.end, waiting.events.is_empty()) {
        (Some(error), true) => Err(error.clone()),
        _ => Ok(WatcherEventsResponse { events: waiting.events.drain(..).collect() }),
    }
}

pub(super) async fn remove(call: Call, request: WatcherRequest) -> Result<Empty, ConnectError> {
    let mut watchers = call.sandbox.watchers.lock().unwrap_or_else(PoisonError::into_inner);
    let removed = watchers.remove(&request.watcher_id);
    removed.map(|_| Empty::default()).ok_or_else(|| missing(&request.watcher_id))
}

fn missing(id: &str) -> ConnectError {
    ConnectError::new(Code::NotFound, format!("there is no watcher {id}"))
}
