//! Starts a VM that stays, works in it, suspends and stops it: `cargo run --example up`.
//!
//! The VM belongs to the directory that this is run in: with its `castra.toml`, or as the default
//! VM. `castra status` and all other commands know it there.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::fs;

use castra_engine::{Castra, Result};

pub(crate) fn main() -> Result<()> {
    let project = Castra::new()?.project(".")?;
    let vm = project.only_vm()?;

    // Waits until commands can run. A VM that runs already is left alone.
    let started = vm.up().start()?;
    println!("{} is up, ran already: {}", vm.name(), started.ran_already);

    // Files go both ways, and directories with all that is in them.
    vm.copy_in("notes.txt", "/root/")?;
    let output = vm.command(["wc", "-c", "/root/notes.txt"]).output()?;
    println!("{}", output.stdout_text().trim());
    vm.copy_out("/etc/hostname", "hostname.txt")?;
    println!("{}", fs::read_to_string("hostname.txt").unwrap_or_default().trim());

    // The VM sees this directory, served by the program `castra`, until it stops.
    vm.mount(".", "/here")?;
    let output = vm.command(["wc", "-c", "notes.txt"]).current_dir("/here").output()?;
    println!("{}", output.stdout_text().trim());
    vm.unmount("/here")?;

    // The memory is saved, and the next `up` continues from it.
    vm.suspend()?;
    println!("{:?}", vm.status()?.map(|status| status.state.name()));
    vm.up().start()?;
    println!("stopped: {}", vm.down().stop()?);
    Ok(())
}
