//! Pressure on both sides: neither may fill memory, and neither may deadlock.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use castra_engine::guest::ssh::GuestExit;

use super::start;
use crate::ssh::guest::{pattern, pipes};

const CHUNK: usize = 64 * 1024;

/// Memory in bytes for both queues, both windows, the read-ahead and the program. Without limits it
/// would be everything sent.
const MEMORY_LIMIT: usize = 24 << 20;

/// Bytes that may be sent: the memory limit and the kernel's socket buffers and pipes.
const SENT_LIMIT: usize = 48 << 20;

/// Writes chunks until the reader is gone or all are written, and counts the bytes.
fn write_counted(stdin: OwnedFd, chunks: usize, sent: Arc<AtomicUsize>) -> thread::JoinHandle<()> {
    let chunk = pattern(CHUNK);
    thread::spawn(move || {
        let mut stdin = File::from(stdin);
        for _ in 0..chunks {
            if stdin.write_all(&chunk).is_err() {
                return;
            }
            sent.fetch_add(CHUNK, Ordering::Relaxed);
        }
    })
}

/// Waits until nothing has been sent for a while: everything that can fill up is full.
fn until_still(sent: &AtomicUsize) -> usize {
    let mut before = usize::MAX;
    loop {
        let now = sent.load(Ordering::Relaxed);
        if now == before {
            return now;
        }
        before = now;
        thread::sleep(Duration::from_millis(400));
    }
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("reads");
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("is a number")
        * 4096
}

#[test]
fn a_command_that_does_not_read_holds_its_sender_back() {
    let guest = start();
    let (streams, stdin, stdout, _stderr) = pipes();
    let sent = Arc::new(AtomicUsize::new(0));
    let before = resident_bytes();
    let writer = write_counted(stdin, 4 * SENT_LIMIT / CHUNK, Arc::clone(&sent));
    let watcher = thread::spawn(move || {
        let mut pid = String::new();
        let mut stdout = File::from(stdout);
        while !pid.ends_with('\n') {
            let mut byte = [0];
            stdout.read_exact(&mut byte).expect("starts");
            pid.push(byte[0].into());
        }
        let at_most = until_still(&sent);
        let grown = resident_bytes().saturating_sub(before);
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("is a pid"))
            .expect("is a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signals");
        stdout.read_to_end(&mut Vec::new()).expect("reads");
        (at_most, grown)
    });
    let exit = guest.exec_on(streams, "echo $$; exec sleep 60", None).expect("runs");
    assert_eq!(exit, GuestExit::Signal("TERM".into()));
    writer.join().expect("ends");
    let (at_most, grown) = watcher.join().expect("watches");
    assert!(at_most < SENT_LIMIT && grown < MEMORY_LIMIT, "{at_most} bytes sent, grown by {grown}");
}

/// Endless output without a reader. Only memory can show how much of it there is.
#[test]
fn output_that_is_not_read_costs_no_memory() {
    let guest = start();
    for line in ["cat /dev/zero", "cat /dev/zero >&2 & exec cat /dev/zero"] {
        let (streams, _stdin, stdout, stderr) = pipes();
        let before = resident_bytes();
        let reader = thread::spawn(move || {
            let mut grown = 0;
            for _ in 0..8 {
                thread::sleep(Duration::from_millis(250));
                grown = grown.max(resident_bytes().saturating_sub(before));
            }
            drop((stdout, stderr));
            grown
        });
        assert_eq!(
            guest.exec_on(streams, line, None).expect("runs"),
            GuestExit::OutputClosed,
            "{line}"
        );
        let grown = reader.join().expect("watches");
        assert!(grown < MEMORY_LIMIT, "{line}: grown by {grown}");
    }
}

/// A slow reader of `cat`: the command's output fills up, then its input.
#[test]
fn a_reader_that_pauses_holds_the_command_back() {
    let guest = start();
    let (streams, stdin, stdout, _stderr) = pipes();
    let sent = Arc::new(AtomicUsize::new(0));
    let chunks = (SENT_LIMIT + (16 << 20)) / CHUNK;
    let before = resident_bytes();
    let writer = write_counted(stdin, chunks, Arc::clone(&sent));
    let reader = thread::spawn(move || {
        let mut stdout = File::from(stdout);
        let expected = pattern(CHUNK);
        let mut chunk = vec![0; CHUNK];
        stdout.read_exact(&mut chunk).expect("starts");
        let at_most = until_still(&sent);
        let grown = resident_bytes().saturating_sub(before);
        for number in 1..chunks {
            stdout.read_exact(&mut chunk).expect("continues");
            assert!(chunk == expected, "chunk {number}");
        }
        assert_eq!(stdout.read(&mut chunk).expect("ends"), 0);
        (at_most, grown)
    });
    assert_eq!(guest.exec_on(streams, "cat", None).expect("runs"), GuestExit::Code(0));
    writer.join().expect("ends");
    let (at_most, grown) = reader.join().expect("reads");
    assert!(at_most < SENT_LIMIT && grown < MEMORY_LIMIT, "{at_most} bytes sent, grown by {grown}");
}
