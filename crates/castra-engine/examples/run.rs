//! Runs commands in throw-away VMs: `cargo run --example run`.
//!
//! The first VM of a machine fetches an image and boots. The next ones of its shape are restored
//! from a template of it, in a fraction of that time.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use castra_engine::{Castra, Network, Result};

pub(crate) fn main() -> Result<()> {
    // Reads the environment once. Without `on_event` it would be silent.
    let castra = Castra::builder().on_event(|event| eprintln!("{event:?}")).build()?;

    // One command in a VM of its own. Its exit code is a result and no error.
    let output = castra.run(["uname", "-m"]).memory_mib(512).output()?;
    println!("{} and {:?}", output.stdout_text().trim(), output.exit);

    // Several commands in one VM, without a network. It ends when it is dropped.
    let sandbox = castra.sandbox().memory_mib(512).network(Network::Isolated).start()?;
    let sorted = sandbox.command(["sort", "-n"]).stdin("10\n9\n").output()?;
    println!("{:?}", sorted.stdout_text());
    let exit = sandbox.command(["sh", "-c", "exit 3"]).status()?;
    println!("{}", exit.code());
    Ok(())
}
