//! A server's listening socket on 127.0.0.1, with a thread for each connection.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// The socket. Its threads end when it is dropped.
pub(crate) struct Listening {
    /// Address with its port.
    pub(crate) address: String,
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Listening {
    /// Serves each connection on a thread of its own, until `over`.
    pub(crate) fn start(
        over: Arc<AtomicBool>,
        serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("an address").to_string();
        let (for_thread, serve) = (over.clone(), Arc::new(serve));
        let thread = Some(thread::spawn(move || accept(&listener, &for_thread, &serve)));
        Self { address, over, thread }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept<S>(listener: &TcpListener, over: &AtomicBool, serve: &Arc<S>)
where
    S: Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
{
    let mut connections = Vec::new();
    for stream in listener.incoming() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        if let Ok(stream) = stream {
            let serve = serve.clone();
            // A client that disconnects is part of many tests.
            connections.push(thread::spawn(move || drop(serve(stream))));
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
}
