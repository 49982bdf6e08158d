//! Mounts a directory through the server and this machine's own kernel, to try programs on it:
//!
//! ```sh
//! cargo run --release -p castra-fuse --example mount -- HOST MOUNT-POINT [ro]
//! ```
//!
//! It needs root and `/dev/fuse`, and runs until the mount point is unmounted.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use castra_fuse::{Access, Directory, MAX_REQUEST, Owner, Server};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

const THREADS: usize = 4;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (host, mount_point, access) = match arguments.as_slice() {
        [host, mount_point] => (host, mount_point, Access::ReadWrite),
        [host, mount_point, flag] if flag == "ro" => (host, mount_point, Access::ReadOnly),
        _ => return Err(io::Error::other("usage: mount HOST MOUNT-POINT [ro]")),
    };
    let directory = Directory::open(Path::new(host), access, Owner { uid: 0, gid: 0 })?;
    let server = Server::new(directory);
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other\0", device.as_raw_fd());
    let options =
        std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("castra", mount_point.as_str(), "fuse", flags, options)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|_| scope.spawn(|| serve(&server, &device))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        })
    })
}

fn serve(server: &Server, device: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; MAX_REQUEST];
    loop {
        let length = match rustix::io::read(device, &mut buffer) {
            Ok(length) => length,
            // Interrupted before it was read.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
            // Unmounted.
            Err(Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if let Some(reply) = server.answer(&buffer[..length]) {
            match rustix::io::write(device, &reply) {
                // The request was interrupted meanwhile.
                Ok(_) | Err(Errno::NOENT) => {}
                Err(Errno::NODEV) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
