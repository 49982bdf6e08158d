//! A server of one file on this machine.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Sends one whole file to each client, one after another. Ends when dropped.
pub(super) struct Server {
    address: String,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn of(file: &Path) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let over = Arc::new(AtomicBool::new(false));
        let (file, is_over) = (file.to_owned(), over.clone());
        let thread = thread::spawn(move || serve(&listener, &file, &is_over));
        Ok(Self { address, over, thread: Some(thread) })
    }

    pub(super) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, file: &Path, over: &AtomicBool) {
    for stream in listener.incoming().map_while(Result::ok) {
        if over.load(Ordering::Relaxed) {
            return;
        }
        // A client that disconnects shows in its own result.
        let _ = send(stream, file);
    }
}

fn send(mut stream: TcpStream, file: &Path) -> io::Result<()> {
    let header = BufReader::new(&stream).lines();
    // The header ends with an empty line; its contents do not matter.
    header.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nETag: \"1\"\r\nContent-Length: {length}\r\n\r\n"
    )?;
    io::copy(&mut file, &mut stream).map(drop)
}
