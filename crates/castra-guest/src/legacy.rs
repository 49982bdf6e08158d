//! State that outlives an agent, for the one that its supervisor starts after it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use castra_wire::{Personality, Secret};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::clock;
use crate::log::log;
use crate::root::{Directory, directory};

/// State that the agents of one boot leave to each other.
pub(crate) struct Legacy {
    /// Root directory in which the first of them was started.
    pub(crate) initramfs: Directory,
    /// The VM's personality, in memory that these processes alone share.
    personality: File,
    is_empty: AtomicBool,
}

impl Legacy {
    /// Returns the legacy of a boot that has just begun.
    ///
    /// # Errors
    /// The root directory cannot be examined, or the kernel has no memory to share.
    pub(crate) fn begin() -> io::Result<Self> {
        Ok(Self {
            initramfs: directory("/")?,
            personality: memfd_create("castra-personality", MemfdFlags::CLOEXEC)?.into(),
            is_empty: AtomicBool::new(true),
        })
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
        }
    }

    #[test]
    fn a_personality_is_left_to_the_next_agent_until_it_is_another_vms() {
        let legacy = Legacy::begin().expect("memory");
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
}
