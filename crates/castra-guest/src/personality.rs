//! Applies the personality that the host sends: turns the guest into one particular VM.

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::AsFd;
use std::path::Path;

use castra_wire::Personality;
use rustix::fs::OFlags;
use rustix::ioctl::{NoArg, Opcode, Setter, opcode};

use crate::adjust;
use crate::kernel_fs::KernelFs;
use crate::ssh::{SshError, SshServer};

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

/// Applies a personality. The keys come last: all else is done before anyone can log in.
pub(crate) fn apply(
    personality: &Personality,
    kernel_fs: &KernelFs,
    server: &SshServer,
) -> Result<(), PersonalityError> {
    let refused = |step| move |source| PersonalityError::Kernel { step, source };
    if !is_hostname(&personality.hostname) {
        return Err(PersonalityError::Hostname(personality.hostname.clone()));
    }
    if !is_machine_id(&personality.machine_id) {
        return Err(PersonalityError::MachineId(personality.machine_id.clone()));
    }
    add_entropy(kernel_fs, personality.entropy.expose())
        .map_err(refused("add entropy to the kernel"))?;
    adjust::set_clock(personality.time_unix_ns).map_err(refused("set the clock"))?;
    set_hostname(&personality.hostname).map_err(refused("set the host name"))?;
    Ok(server.personalise(personality.host_key.expose(), &personality.authorized_keys)?)
}

/// Sets the host name of the running kernel.
pub(crate) fn set_hostname(hostname: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(hostname.as_bytes())?)
}

/// Writes the host name or the machine ID to the file in which the image's programs expect it.
/// Leaves a symbolic link alone, because it means that a part of the image maintains the file.
pub(crate) fn write_line(file: &Path, text: &str) -> io::Result<()> {
    if fs::symlink_metadata(file).is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(());
    }
    let line = format!("{text}\n");
    if fs::read_to_string(file).is_ok_and(|current| current == line) {
        return Ok(());
    }
    fs::write(file, line)
}

/// Returns `true` if `file` has the machine ID of another VM: this one is a copy of it.
pub(crate) fn is_of_another(file: &Path, machine_id: &str) -> bool {
    let known = fs::read_to_string(file).unwrap_or_default();
    let known = known.trim();
    is_machine_id(known) && known != machine_id
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
fn is_machine_id(id: &str) -> bool {
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
fn add_entropy(kernel_fs: &KernelFs, entropy: &[u8]) -> io::Result<()> {
    let random = kernel_fs.dev.open("urandom", OFlags::RDWR)?;
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
    fn a_copy_is_recognised_by_the_machine_id_of_another() {
        let file = std::env::temp_dir().join(format!("castra-machine-id-{}", std::process::id()));
        let (own, other) = ("0".repeat(32), "1".repeat(32));
        assert!(!is_of_another(&file, &own), "a VM that never had one");
        for (text, is_copy) in
            [("", false), ("uninitialized\n", false), (&own, false), (&other, true)]
        {
            fs::write(&file, text).expect("writes");
            assert_eq!(is_of_another(&file, &own), is_copy, "{text}");
        }
        fs::remove_file(&file).expect("tidies up");
    }

    #[test]
    fn the_ioctls_have_the_kernels_numbers() {
        assert_eq!(ADD_ENTROPY, 0x4008_5203);
        assert_eq!(RESEED, 0x5207);
    }

    #[test]
    fn the_name_is_written_unless_the_file_is_a_link() {
        let directory =
            std::env::temp_dir().join(format!("castra-identity-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let (file, link) = (directory.join("hostname"), directory.join("link"));
        write_line(&file, "one").expect("writes");
        write_line(&file, "two").expect("writes");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "two\n");
        std::os::unix::fs::symlink(&file, &link).expect("links");
        write_line(&link, "three").expect("leaves it");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "two\n");
        fs::remove_dir_all(&directory).expect("tidies up");
    }
}
