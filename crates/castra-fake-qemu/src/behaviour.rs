//! Faults of this QEMU, and its journal. Both files are in `fake-qemu/` beside the state root, by
//! the VM's name.
//!
//! | Word | Effect |
//! | --- | --- |
//! | `dies` | ends at its start, with a word on stderr |
//! | `no-slirp` | ends at its start, since it was built without user networking |
//! | `port-taken:N` | its first N starts find a port taken |
//! | `qmp-silent` | does not even greet |
//! | `qmp-garbage` | greets with what is not QMP |
//! | `qmp-half-line` | begins its answers and does not end them |
//! | `qmp-giant-line` | answers with a line of 10 MB |
//! | `qmp-wrong-id` | answers what was not asked |
//! | `qmp-reset` | closes the connection instead of answering |
//! | `ignores-powerdown`, `ignores-quit`, `ignores-term` | agrees, and continues |
//! | `panics-with:TEXT` | a guest whose kernel contains this text panics, and its agent is silent |
//! | `guest-silent` | the agent receives and does not answer |
//! | `agent-gone` | no agent runs in the guest |
//! | `guest-slow:MS` | the agent's first message takes this long |
//! | `volume-small` | the agent leaves the growth of a volume to the user, and says so twice |
//! | `emergency` | the agent reports that the boot ended in emergency mode |
//! | `modules-gone` | the agent reports that the root has only modules of another kernel |
//! | `guest-old` | the agent knows no question about its condition |
//! | `link-down` | the agent reports that the guest's interface is down |
//! | `clock-behind:SECS` | the guest's clock is behind by this much |
//! | `ssh-silent` | the guest's ports accept connections and never answer |
//! | `loopback-only` | the guest's services listen only on loopback; without it there are none |
//! | `disk-full` | the guest's next write pauses it (`io-error`), until continued with space |
//! | `save-fails` | saving its state fails |

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use crate::arguments::Arguments;

/// Levels of the pid file below the directory of these files: `.castra/vms/<vm>/qemu.pid`.
const PIDFILE_DEPTH: usize = 4;

#[derive(Clone)]
pub(crate) struct Behaviour {
    words: PathBuf,
    journal: PathBuf,
    generation: PathBuf,
}

impl Behaviour {
    pub(crate) fn of(arguments: &Arguments) -> Self {
        let root =
            arguments.pidfile.ancestors().nth(PIDFILE_DEPTH).expect("a pid file in a state root");
        let file = |kind: &str| root.join("fake-qemu").join(format!("{}.{kind}", arguments.name));
        Self { words: file("words"), journal: file("journal"), generation: file("generation") }
    }

    pub(crate) fn has(&self, word: &str) -> bool {
        self.words().iter().any(|found| found == word)
    }

    /// Returns the number after a word.
    pub(crate) fn number(&self, word: &str) -> Option<u64> {
        self.words()
            .iter()
            .find_map(|found| found.strip_prefix(word)?.strip_prefix(':')?.parse().ok())
    }

    /// Returns `true` if the guest's kernel panics.
    pub(crate) fn panics(&self, arguments: &Arguments) -> bool {
        let Some((kernel, _)) = &arguments.kernel else { return false };
        let kernel = fs::read(kernel).unwrap_or_default();
        let contains = |text: &str| kernel.windows(text.len()).any(|part| part == text.as_bytes());
        self.words().iter().filter_map(|word| word.strip_prefix("panics-with:")).any(contains)
    }

    fn words(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.words).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Records this start, and returns its number, from 1.
    pub(crate) fn note_start(&self) -> u64 {
        self.note("started");
        let journal = fs::read_to_string(&self.journal).unwrap_or_default();
        journal.lines().filter(|line| line.ends_with(" started")).count().max(1) as u64
    }

    pub(crate) fn is_port_taken(&self, start: u64) -> bool {
        self.number("port-taken").is_some_and(|starts| start <= starts)
    }

    /// Appends one line to the journal, if its directory exists.
    pub(crate) fn note(&self, what: &str) {
        if let Ok(mut journal) = OpenOptions::new().append(true).create(true).open(&self.journal) {
            let _ = journal.write_all(format!("{} {what}\n", std::process::id()).as_bytes());
        }
    }

    /// Returns the number of times that a machine has run on this disk.
    pub(crate) fn generation(&self) -> u64 {
        fs::read_to_string(&self.generation)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Gives the disk of a clone, on which no machine has run, the generation at which its memory
    /// was saved.
    pub(crate) fn inherit_generation(&self, generation: u64) {
        if !self.generation.exists() {
            let _ = fs::write(&self.generation, generation.to_string());
        }
    }

    pub(crate) fn next_generation(&self) {
        let _ = fs::write(&self.generation, (self.generation() + 1).to_string());
    }
}
