//! Entries that a rule finds, in the order in which they are tried.

use super::bls::{self, BlsEntry};
use super::mounted::{BootDirectory, Mounted};
use super::no_system::NoSystem;
use super::variables::Variables;
use super::{MAX_CANDIDATES, MAX_CONFIG_BYTES, Rule, extlinux, grub, kernel, version};
use crate::filesystem::{Fault, FileKind};

/// Maximum number of entries of the Boot Loader Specification that are read.
const MAX_BLS_ENTRIES: usize = 256;
/// Places of `grub.cfg` and of `grubenv`, in a directory for boot loaders.
const GRUB: [&str; 2] = ["grub", "grub2"];
/// Places of the configuration of extlinux and syslinux.
const EXTLINUX: [&str; 5] = [
    "extlinux/extlinux.conf",
    "extlinux.conf",
    "syslinux/syslinux.cfg",
    "syslinux/extlinux.conf",
    "syslinux.cfg",
];

/// An entry that may boot.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Name for people.
    pub(super) name: String,
    pub(super) files: Files,
}

/// Files of an entry.
#[derive(Debug)]
pub(super) enum Files {
    /// Kernel and initramfs by themselves. Without options, a command line is made.
    Separate { on: On, kernel: String, initramfs: Vec<String>, options: Option<String> },
    /// Unified kernel image.
    Unified { tree: usize, path: String },
}

/// Filesystem that contains an entry's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum On {
    /// The one of this tree.
    Tree(usize),
    Uuid(String),
    Label(String),
}

/// Finds the entries of a rule.
pub(super) fn find(rule: Rule, mounted: &mut Mounted<'_>, failed: &mut NoSystem) -> Vec<Candidate> {
    let directories = mounted.boot_directories();
    let mut finder = Finder { rule, mounted, failed };
    let mut candidates = Vec::new();
    for directory in &directories {
        candidates.extend(match rule {
            Rule::BootLoaderSpecification => finder.bls(*directory, &directories),
            Rule::Grub => finder.grub(*directory),
            Rule::Extlinux => finder.extlinux(*directory),
            Rule::UnifiedKernelImage => finder.unified(*directory),
            Rule::NewestKernel => finder.newest(*directory),
        });
    }
    candidates.truncate(MAX_CANDIDATES);
    candidates
}

struct Finder<'a, 'b> {
    rule: Rule,
    mounted: &'a mut Mounted<'b>,
    failed: &'a mut NoSystem,
}

impl Finder<'_, '_> {
    fn bls(&mut self, directory: BootDirectory, all: &[BootDirectory]) -> Vec<Candidate> {
        let names = self.names(directory, "loader/entries");
        let files = names.iter().filter_map(|name| Some((name, name.strip_suffix(".conf")?)));
        let files: Vec<_> = files.take(MAX_BLS_ENTRIES).collect();
        if files.is_empty() {
            return Vec::new();
        }
        let mut variables = self.grubenv(all);
        let mut chosen = variables.get("saved_entry").to_owned();
        if chosen.is_empty() {
            chosen = self.loader_default(directory);
        }
        // It sets what entries refer to, such as `kernelopts`.
        if let Some((_, script)) = self.grub_script(directory) {
            grub::parse(&script, &mut variables);
        }
        let mut entries = Vec::new();
        for (name, id) in files {
            let text = self.text(directory, &format!("loader/entries/{name}"));
            entries.extend(text.and_then(|text| BlsEntry::parse(id, &text, &variables)));
        }
        bls::order(&mut entries, &chosen);
        let candidate = |entry: BlsEntry| Candidate {
            name: entry.id,
            files: Files::Separate {
                on: On::Tree(directory.tree),
                kernel: entry.kernel,
                initramfs: entry.initramfs,
                options: Some(entry.options).filter(|options| !options.is_empty()),
            },
        };
        entries.into_iter().map(candidate).collect()
    }

    /// Returns the variables that GRUB saved, from wherever they are: on UEFI systems next to the
    /// loader.
    fn grubenv(&mut self, directories: &[BootDirectory]) -> Variables {
        for directory in directories {
            for place in GRUB {
                if let Some(text) = self.text(*directory, &format!("{place}/grubenv")) {
                    return Variables::parse(&text);
                }
            }
            for vendor in self.names(*directory, "EFI") {
                if let Some(text) = self.text(*directory, &format!("EFI/{vendor}/grubenv")) {
                    return Variables::parse(&text);
                }
            }
        }
        Variables::default()
    }

    /// Returns the entry that systemd-boot's configuration chooses.
    fn loader_default(&mut self, directory: BootDirectory) -> String {
        let text = self.text(directory, "loader/loader.conf").unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| line.trim().split_once(' '));
        let default = lines.find(|(name, _)| *name == "default");
        default.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    }

    fn grub(&mut self, directory: BootDirectory) -> Vec<Candidate> {
        let Some((path, script)) = self.grub_script(directory) else { return Vec::new() };
        let mut variables = self.grubenv(&[directory]);
        let candidate = |entry: grub::MenuEntry| Candidate {
            name: format!("{} in {path}", entry.title),
            files: Files::Separate {
                on: match entry.on {
                    grub::Search::Same => On::Tree(directory.tree),
                    grub::Search::Uuid(uuid) => On::Uuid(uuid),
                    grub::Search::Label(label) => On::Label(label),
                },
                kernel: entry.kernel,
                initramfs: entry.initramfs,
                options: Some(entry.options),
            },
        };
        grub::parse(&script, &mut variables).into_iter().map(candidate).collect()
    }

    fn grub_script(&mut self, directory: BootDirectory) -> Option<(String, String)> {
        let places = GRUB.into_iter().map(|place| format!("{place}/grub.cfg"));
        let vendors = self.names(directory, "EFI").into_iter();
        let places = places.chain(vendors.map(|vendor| format!("EFI/{vendor}/grub.cfg")));
        // One that only leads to another has no entries.
        places.into_iter().find_map(|place| {
            let script = self.text(directory, &place)?;
            script.contains("menuentry").then(|| (directory.path(&place), script))
        })
    }

    fn extlinux(&mut self, directory: BootDirectory) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for place in EXTLINUX {
            let Some(text) = self.text(directory, place) else { continue };
            let path = directory.path(place);
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            // Relative paths begin next to the configuration.
            let absolute = |file: String| {
                if file.starts_with('/') { file } else { format!("{parent}/{file}") }
            };
            candidates.extend(extlinux::parse(&text).into_iter().map(|label| Candidate {
                name: format!("{} in {path}", label.name),
                files: Files::Separate {
                    on: On::Tree(directory.tree),
                    kernel: absolute(label.kernel),
                    initramfs: label.initramfs.into_iter().map(absolute).collect(),
                    options: Some(label.options),
                },
            }));
        }
        candidates
    }

    fn unified(&mut self, directory: BootDirectory) -> Vec<Candidate> {
        let mut names = self.names(directory, "EFI/Linux");
        names.retain(|name| name.to_ascii_lowercase().ends_with(".efi"));
        names.sort_by(|left, right| version::compare(right, left));
        let candidate = |name: String| {
            let path = directory.path(&format!("EFI/Linux/{name}"));
            Candidate { name: path.clone(), files: Files::Unified { tree: directory.tree, path } }
        };
        names.into_iter().map(candidate).collect()
    }

    fn newest(&mut self, directory: BootDirectory) -> Vec<Candidate> {
        let pairs = kernel::pairs(&self.names(directory, ""));
        let candidate = |pair: kernel::Pair| {
            let kernel = directory.path(&pair.kernel);
            Candidate {
                name: kernel.clone(),
                files: Files::Separate {
                    on: On::Tree(directory.tree),
                    kernel,
                    initramfs: vec![directory.path(&pair.initramfs)],
                    options: None,
                },
            }
        };
        pairs.into_iter().map(candidate).collect()
    }

    /// Returns the names in a directory that are text, those of directories included.
    fn names(&mut self, directory: BootDirectory, relative: &str) -> Vec<String> {
        let path = directory.path(relative);
        let listed = self.mounted.trees[directory.tree].files.list_counted(path.as_bytes());
        let entries = self.noted(&path, listed).unwrap_or_default();
        let entries = entries.into_iter().filter(|entry| entry.kind != FileKind::Special);
        entries.filter_map(|entry| String::from_utf8(entry.name).ok()).collect()
    }

    /// Returns the text of a small file, if it exists.
    fn text(&mut self, directory: BootDirectory, relative: &str) -> Option<String> {
        let path = directory.path(relative);
        let files = &mut self.mounted.trees[directory.tree].files;
        let bytes = files.read_counted(path.as_bytes(), MAX_CONFIG_BYTES);
        let bytes = self.noted(&path, bytes)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Notes why a file cannot be read, unless it does not exist.
    fn noted<T>(&mut self, path: &str, outcome: Result<T, Fault>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(Fault::NotFound | Fault::IsNot(_)) => None,
            Err(fault) => {
                self.failed.attempted(self.rule, path.to_owned(), fault.to_string());
                None
            }
        }
    }
}
