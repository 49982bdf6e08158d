//! Applies the personality that the host sends: turns the guest into one particular VM.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, OwnedFd};

use castra_wire::{Personality, Secret};
use rustix::fs::OFlags;
use rustix::ioctl::{NoArg, Opcode, Setter, opcode};

use crate::adjust;
use crate::identity::Identity;
use crate::kernel_fs::KernelFs;
use crate::ssh::{Keys, SshError, SshServer};

/// Linux's `HOST_NAME_MAX`, without the final NUL.
const MAX_HOSTNAME_BYTES: usize = 64;

/// Bytes of entropy that are used; the kernel's pool holds 256 bits.
const ENTROPY_BYTES: usize = 64;

/// Reason why a personality was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PersonalityError {
    /// The machine ID is malformed.
    #[error("{0:?} is not a machine id")]
    MachineId(String),
    /// The host name is malformed.
    #[error("{0:?} is not a host name")]
    Hostname(String),
    /// The kernel refused.
    #[error("cannot {step}: {source}")]
    Kernel {
        /// Step that failed.
        step: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The SSH server refused the keys.
    #[error("cannot install the keys: {0}")]
    Keys(#[from] SshError),
}

/// The kernel's random number generator. Open from the start, since opening a device for the first
/// time is slow on an emulated CPU.
pub(crate) struct Random(OwnedFd);

impl Random {
    pub(crate) fn open(kernel_fs: &KernelFs) -> io::Result<Self> {
        Ok(Self(kernel_fs.dev.open("urandom", OFlags::RDWR)?))
    }
}

/// Applies a personality. The keys come last: all else is done before anyone can log in.
pub(crate) fn apply(
    personality: Personality,
    random: &Random,
    server: &SshServer,
) -> Result<Identity, PersonalityError> {
    let refused = |step| move |source| PersonalityError::Kernel { step, source };
    let Personality { hostname, machine_id, host_key, authorized_keys, .. } = personality;
    if !is_hostname(&hostname) {
        return Err(PersonalityError::Hostname(hostname));
    }
    if !is_machine_id(&machine_id) {
        return Err(PersonalityError::MachineId(machine_id));
    }
    wake(random, personality.time_unix_ns, &personality.entropy)?;
    set_hostname(&hostname).map_err(refused("set the host name"))?;
    server.take_keys(Keys { host_key, authorized: authorized_keys })?;
    Ok(Identity { hostname, machine_id })
}

/// Gives the kernel random bytes and the time, without which no program may run.
pub(crate) fn wake(
    random: &Random,
    time_unix_ns: u64,
    entropy: &Secret,
) -> Result<(), PersonalityError> {
    let refused = |step| move |source| PersonalityError::Kernel { step, source };
    add_entropy(random, entropy.expose()).map_err(refused("add entropy to the kernel"))?;
    adjust::set_clock(time_unix_ns).map_err(refused("set the clock"))
}

/// Sets the host name of the running kernel.
pub(crate) fn set_hostname(hostname: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(hostname.as_bytes())?)
}

/// Returns `true` for a host name after RFC 1123, dots included for names with a domain.
fn is_hostname(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty()
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= MAX_HOSTNAME_BYTES && name.split('.').all(label)
}

/// Returns `true` for a machine ID as in `machine-id(5)`.
pub(crate) fn is_machine_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// `struct rand_pool_info` of `linux/random.h`, with room for our bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: i32,
    size_bytes: i32,
    bytes: [u8; ENTROPY_BYTES],
}

/// `RNDADDENTROPY`; its number contains the size of the structure's fixed part.
const ADD_ENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);

/// `RNDRESEEDCRNG`.
const RESEED: Opcode = opcode::none(b'R', 0x07);

/// Adds the host's random bytes and makes the kernel use them at once: a restored template must not
/// draw the random numbers that its siblings draw.
#[expect(unsafe_code, reason = "no library wraps these two ioctls")]
fn add_entropy(Random(random): &Random, entropy: &[u8]) -> io::Result<()> {
    for part in entropy.chunks(ENTROPY_BYTES) {
        let mut bytes = [0; ENTROPY_BYTES];
        bytes[..part.len()].copy_from_slice(part);
        let size_bytes = i32::try_from(part.len()).map_err(io::Error::other)?;
        let info = RandPoolInfo { entropy_bits: size_bytes * 8, size_bytes, bytes };
        // SAFETY: the kernel reads the two numbers and then `size_bytes` of `bytes`, which holds at
        // least that many.
        unsafe { rustix::ioctl::ioctl(random.as_fd(), Setter::<ADD_ENTROPY, _>::new(info)) }?;
    }
    // SAFETY: this ioctl takes no argument.
    unsafe { rustix::ioctl::ioctl(random.as_fd(), NoArg::<RESEED>::new()) }?;
    Ok(())
}

const _: () = assert!(size_of::<RandPoolInfo>() == 8 + ENTROPY_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        for good in ["vm", "alpine-minimal", "a.b-c.example", "9front"] {
            assert!(is_hostname(good), "{good}");
        }
        let long = "a".repeat(MAX_HOSTNAME_BYTES + 1);
        for bad in
            ["", ".", "-a", "a-", "a..b", "a b", "a\nb", "ä", "a/b", "\u{1b}[2J", long.as_str()]
        {
            assert!(!is_hostname(bad), "{bad:?}");
        }
    }

    #[test]
    fn machine_ids() {
        assert!(is_machine_id("0123456789abcdef0123456789abcdef"));
        for bad in [
            "",
            "0123456789abcdef0123456789abcde",
            "0123456789ABCDEF0123456789ABCDEF",
            "uninitialized",
        ] {
            assert!(!is_machine_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_ioctls_have_the_kernels_numbers() {
        assert_eq!(ADD_ENTROPY, 0x4008_5203);
        assert_eq!(RESEED, 0x5207);
    }
}
