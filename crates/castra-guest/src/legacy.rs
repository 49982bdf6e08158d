//! State that outlives an agent, for the one that its supervisor starts after it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use castra_wire::{Personality, Secret};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::kernel_fs::KernelFs;
use crate::log::log;
use crate::root::{Directory, directory};
use crate::{clock, emulation};

/// State that the agents of one boot leave to each other.
pub(crate) struct Legacy {
    /// Root directory in which the first of them was started.
    pub(crate) initramfs: Directory,
    /// The VM's personality, in memory that these processes alone share.
    personality: File,
    is_empty: AtomicBool,
    /// How the kernel is to randomize addresses, in such memory; empty once it does.
    randomization: File,
}

impl Legacy {
    /// Returns the legacy of a boot that has just begun, with a setting that is to be restored.
    ///
    /// # Errors
    /// The root directory cannot be examined, or the kernel has no memory to share.
    pub(crate) fn begin(randomization: Option<&str>) -> io::Result<Self> {
        let memory = |name| memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
        let setting = memory("castra-randomization")?;
        setting.write_all_at(randomization.unwrap_or_default().as_bytes(), 0)?;
        Ok(Self {
            initramfs: directory("/")?,
            personality: memory("castra-personality")?,
            is_empty: AtomicBool::new(true),
            randomization: setting,
        })
    }

    /// Randomizes the addresses of programs as before the boot, unless an agent has done so.
    pub(crate) fn restore_randomization(&self, kernel_fs: &KernelFs) {
        let Some(value) = self.take_randomization() else { return };
        if let Err(error) = emulation::restore_randomization(&kernel_fs.proc, &value) {
            log(format!("cannot randomize the addresses of programs again: {error}"));
        }
    }

    fn take_randomization(&self) -> Option<String> {
        let mut bytes = vec![0; usize::try_from(self.randomization.metadata().ok()?.len()).ok()?];
        self.randomization.read_exact_at(&mut bytes, 0).ok()?;
        self.randomization.set_len(0).ok()?;
        String::from_utf8(bytes).ok().filter(|value| !value.is_empty())
    }

    /// Leaves a personality to the next agent. Random bytes serve only once, and time passes, so
    /// both are omitted.
    pub(crate) fn keep(&self, personality: Personality) {
        let entropy = Secret::new(Vec::new());
        let bytes = castra_wire::encode(&Personality { time_unix_ns: 0, entropy, ..personality });
        self.forget();
        match self.personality.write_all_at(&bytes, 0) {
            Ok(()) => self.is_empty.store(false, Ordering::Relaxed),
            Err(error) => log(format!("cannot keep the personality in memory: {error}")),
        }
    }

    /// Drops the personality, which is another VM's.
    pub(crate) fn forget(&self) {
        if !self.is_empty.swap(true, Ordering::Relaxed)
            && let Err(error) = self.personality.set_len(0)
        {
            log(format!("cannot drop the personality in memory: {error}"));
        }
    }

    /// Returns the personality that an earlier agent of this boot had, with the current time.
    pub(crate) fn personality(&self) -> Option<Personality> {
        let mut bytes = vec![0; usize::try_from(self.personality.metadata().ok()?.len()).ok()?];
        self.personality.read_exact_at(&mut bytes, 0).ok()?;
        let personality: Personality = castra_wire::decode(&bytes).ok()?;
        self.is_empty.store(false, Ordering::Relaxed);
        Some(Personality { time_unix_ns: clock::unix_ns(), ..personality })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn personality(hostname: &str) -> Personality {
        Personality {
            time_unix_ns: 1,
            entropy: Secret::new(b"random".to_vec()),
            hostname: hostname.into(),
            machine_id: "0".repeat(32),
            host_key: Secret::new(b"key".to_vec()),
            authorized_keys: vec!["one".into()],
            relays: None,
            disks: None,
        }
    }

    #[test]
    fn a_personality_is_left_to_the_next_agent_until_it_is_another_vms() {
        let legacy = Legacy::begin(None).expect("memory");
        assert!(legacy.personality().is_none());
        legacy.keep(personality("a-long-name"));
        legacy.keep(personality("web"));
        let kept = legacy.personality().expect("kept");
        assert!(kept.time_unix_ns > 1 && kept.entropy.expose().is_empty(), "{kept:?}");
        let entropy = Secret::new(b"random".to_vec());
        assert_eq!(Personality { time_unix_ns: 1, entropy, ..kept }, personality("web"));
        legacy.forget();
        assert!(legacy.personality().is_none());
    }

    #[test]
    fn addresses_are_randomized_again_once() {
        assert_eq!(Legacy::begin(None).expect("memory").take_randomization(), None);
        let legacy = Legacy::begin(Some("2")).expect("memory");
        assert_eq!(legacy.take_randomization().as_deref(), Some("2"));
        assert_eq!(legacy.take_randomization(), None, "the next agent leaves it alone");
    }
}
