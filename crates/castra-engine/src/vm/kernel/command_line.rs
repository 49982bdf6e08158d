//! Command lines of kernels, with what Castra needs.

use crate::config::{DataDisk, PortForward};
use crate::qemu::CommandLine;

/// Longest command line of an x86-64 kernel, in bytes, without its final NUL
/// (`COMMAND_LINE_SIZE`).
const MAX_BYTES: usize = 2047;
/// Most bytes of the option with the agent's relays, and of each relay in it.
const RELAYS_BYTES: usize = 32;
/// Bytes of the option with the agent's orders for disks, without the orders.
const DISKS_BYTES: usize = " castra.disk=".len();
const RELAY_BYTES: usize = "65535:65535,".len();

/// Kernel options in addition to the image's or the disk's. The kernel must not measure the timer's
/// ticks: on a machine so busy that QEMU hardly runs it finds that the timer does not work, and
/// panics ("IO-APIC + timer doesn't work"). And it must not look for errors in its own use of
/// memory ten times a second, which delays the first command of an emulated guest.
const FOR_EVERY_KERNEL: [&str; 2] = ["no_timer_check", "kfence.sample_interval=0"];
/// Kernel option that makes the agent the first process: [`crate::guest::AGENT_PATH`].
const AGENT_FIRST: &str = "rdinit=/castra/agent";

/// Kernel options after those of a disk. The agent writes to the root before the system would make
/// it writable. And it sets the network's link up, after which udev cannot rename the interface any
/// more: systemd-networkd of a kernel before 6.2 waits for that for ever. The kernel need not
/// compare its ciphers and digests with known results, which takes an emulated CPU a second; with
/// `fips=1` it does so anyway.
const FOR_DISKS: [&str; 3] = ["rw", "net.ifnames=0", "cryptomgr.notests"];
/// Kernel option that keeps cloud-init away: without a source of data it looks for one for as long
/// as the rest of the boot takes. A disk whose own options name a source has one.
const NO_CLOUD_INIT: &str = "cloud-init=disabled";
const CLOUD_INIT_OPTIONS: [&str; 3] = ["cloud-init=", "ds=", "cloud-config-url="];
/// Kernel option that names the seed of data source NoCloud: where the agent puts it. A path
/// without its last slash would be the beginning of a file's name.
const SEED: &str = "ds=nocloud;s=/run/castra/seed/";
/// Kernel option that makes the serial port the console: the last one counts.
const SERIAL_CONSOLE: &str = "console=ttyS0";

/// Returns the command line of an image's kernel.
pub(super) fn of_image(line: &CommandLine) -> CommandLine {
    line.with(&FOR_EVERY_KERNEL).with(&[AGENT_FIRST])
}

/// Returns the command line of a disk's kernel, to which the VM has data for cloud-init or not.
pub(super) fn of_disk(own: &CommandLine, has_seed: bool) -> CommandLine {
    let is_of_cloud_init =
        |word: &str| CLOUD_INIT_OPTIONS.iter().any(|option| word.starts_with(option));
    let own = if has_seed { own.without(is_of_cloud_init) } else { own.clone() };
    let words = || own.as_str().split(' ');
    let mut consoles = words().filter_map(|word| word.strip_prefix("console="));
    let is_serial =
        consoles.next_back().is_some_and(|console| console.split(',').next() == Some("ttyS0"));
    let mut line = own.with(&FOR_DISKS);
    if has_seed {
        line = line.with(&[SEED]);
    } else if !words().any(is_of_cloud_init) {
        line = line.with(&[NO_CLOUD_INIT]);
    }
    if !is_serial {
        line = line.with(&[SERIAL_CONSOLE]);
    }
    of_image(&line)
}

/// Returns the reason why a kernel would not see all of its command line, if there is one.
pub(super) fn problem_of_disk(
    line: &CommandLine,
    forwards: &[PortForward],
    disks: &[DataDisk],
) -> Option<&'static str> {
    let text = line.as_str();
    let relays = RELAYS_BYTES + RELAY_BYTES * forwards.len();
    let disks: usize = disks.iter().map(|disk| disk.order(true).on_command_line().len()).sum();
    if !text.matches('"').count().is_multiple_of(2) {
        // What follows would be a part of the quoted value.
        Some("its command line has an open quotation mark")
    } else if of_disk(line, true).as_str().len() + relays + DISKS_BYTES + disks > MAX_BYTES {
        Some("its command line leaves no room for Castra's options")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::Protocol;

    fn line(text: &str) -> CommandLine {
        text.parse().expect("a line")
    }

    #[test]
    fn the_command_line_names_the_agent() {
        assert_eq!(AGENT_FIRST, format!("rdinit={}", crate::guest::AGENT_PATH));
    }

    #[test]
    fn a_disks_own_options_come_first_and_the_serial_port_is_the_console() {
        let castras = "no_timer_check kfence.sample_interval=0 rdinit=/castra/agent";
        for (own, console) in [
            ("root=/dev/vda1 ro quiet", " console=ttyS0"),
            ("ro console=tty0 console=ttyS0,115200n8", ""),
            ("ro console=ttyS0 console=tty0", " console=ttyS0"),
            ("ro console=ttyS01", " console=ttyS0"),
        ] {
            let expected = format!(
                "{own} rw net.ifnames=0 cryptomgr.notests cloud-init=disabled{console} {castras}"
            );
            assert_eq!(of_disk(&line(own), false).as_str(), expected);
        }
        for own in ["ro ds=nocloud;s=/seed/ console=ttyS0", "ro cloud-init=enabled console=ttyS0"] {
            assert_eq!(
                of_disk(&line(own), false).as_str(),
                format!("{own} rw net.ifnames=0 cryptomgr.notests {castras}")
            );
            let seeded = of_disk(&line(own), true);
            assert_eq!(
                seeded.as_str(),
                format!("ro console=ttyS0 rw net.ifnames=0 cryptomgr.notests {SEED} {castras}")
            );
        }
    }

    #[test]
    fn arguments_of_the_disks_init_stay_the_last() {
        let of_init = of_disk(&line("ro -- single"), false);
        assert!(of_init.as_str().ends_with(" rdinit=/castra/agent -- single"), "{of_init}");
        let with_relays = of_init.with_relays(&[castra_wire::Relay { port: 61_022, to: 80 }]);
        assert!(with_relays.as_str().ends_with("=61022:80 -- single"), "{with_relays}");
    }

    #[test]
    fn a_line_that_would_hide_castras_options_is_refused() {
        assert_eq!(problem_of_disk(&line("ro \"dyndbg=file a +p\""), &[], &[]), None);
        assert!(problem_of_disk(&line("ro dyndbg=\"file a"), &[], &[]).is_some());
        let long = line(&"a".repeat(1800));
        assert_eq!(problem_of_disk(&long, &[], &[]), None);
        let forward = PortForward { host: 1, guest: 1, protocol: Protocol::Tcp };
        assert!(problem_of_disk(&long, &[forward; 20], &[]).is_some());
    }
}
