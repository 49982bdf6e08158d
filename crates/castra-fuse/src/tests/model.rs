//! Random operations through the server, and the same ones on a plain directory: errors and trees
//! are the same.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::guest::{ENOTDIR, Error, Guest, body};
use crate::abi::{ROOT, kind, opcode, open};

/// A path of one or two names.
#[derive(Debug, Clone)]
pub(super) struct Place(Option<&'static str>, &'static str);

impl Place {
    pub(super) fn name(&self) -> &'static str {
        self.1
    }

    fn below(&self, root: &Path) -> PathBuf {
        root.join(self.0.unwrap_or(".")).join(self.1)
    }
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Create { place: Place, exclusive: bool, mode: u32, data: Vec<u8> },
    Write { place: Place, truncate: bool, offset: u64, data: Vec<u8> },
    Truncate { place: Place, size: u64 },
    MakeDirectory(Place),
    MakeLink(Place),
    Link { from: Place, to: Place },
    Unlink(Place),
    RemoveDirectory(Place),
    Rename { from: Place, to: Place },
    SetMode { place: Place, mode: u32 },
    Read(Place),
    List(Place),
}

fn place() -> impl Strategy<Value = Place> {
    let directory = proptest::option::of(proptest::sample::select(vec!["a", "b", "d"]));
    let name = proptest::sample::select(vec!["a", "b", "c", "d"]);
    (directory, name).prop_map(|(directory, name)| Place(directory, name))
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..20)
}

fn mode() -> impl Strategy<Value = u32> {
    proptest::sample::select(vec![0o600, 0o644, 0o755, 0o400, 0o1777])
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (place(), any::<bool>(), mode(), data()).prop_map(|(place, exclusive, mode, data)| {
            Step::Create { place, exclusive, mode, data }
        }),
        2 => (place(), any::<bool>(), 0_u64..50, data())
            .prop_map(|(place, truncate, offset, data)| {
                Step::Write { place, truncate, offset, data }
            }),
        1 => (place(), 0_u64..50).prop_map(|(place, size)| Step::Truncate { place, size }),
        3 => place().prop_map(Step::MakeDirectory),
        1 => place().prop_map(Step::MakeLink),
        2 => (place(), place()).prop_map(|(from, to)| Step::Link { from, to }),
        2 => place().prop_map(Step::Unlink),
        1 => place().prop_map(Step::RemoveDirectory),
        3 => (place(), place()).prop_map(|(from, to)| Step::Rename { from, to }),
        // Directories stay readable to those who are not root.
        1 => (place(), mode())
            .prop_map(|(place, mode)| Step::SetMode { place, mode: mode | 0o700 }),
        2 => place().prop_map(Step::Read),
        1 => place().prop_map(Step::List),
    ]
}

/// Returns the node of the directory that a place is in.
fn parent(guest: &Guest, place: &Place) -> Result<u64, Error> {
    let Some(name) = place.0 else { return Ok(ROOT) };
    let entry = guest.look_up(ROOT, name)?;
    // The kernel walks through directories only.
    let is_directory = entry.attributes.mode & kind::MASK == kind::DIRECTORY;
    if is_directory { Ok(entry.node) } else { Err(ENOTDIR) }
}

fn node(guest: &Guest, place: &Place) -> Result<u64, Error> {
    Ok(guest.look_up(parent(guest, place)?, place.1)?.node)
}

/// Takes a step as the guest's kernel would. Bytes are what was read or listed.
pub(super) fn through_server(guest: &Guest, step: &Step) -> Result<Vec<u8>, Error> {
    let with_handle = |node, handle, offset, data: &[u8]| {
        let written = guest.write(node, handle, offset, 0, data);
        guest.release(node, handle)?;
        written.map(|_| Vec::new())
    };
    let nothing = |()| Vec::new();
    match step {
        Step::Create { place, exclusive, mode, data } => {
            let flags = open::READ_WRITE | if *exclusive { open::EXCLUSIVE } else { 0 };
            let (entry, handle) = guest.create(parent(guest, place)?, place.1, flags, *mode)?;
            with_handle(entry.node, handle, 0, data)
        }
        Step::Write { place, truncate, offset, data } => {
            let node = node(guest, place)?;
            let flags = open::WRITE_ONLY | if *truncate { open::TRUNCATE } else { 0 };
            with_handle(node, guest.open(node, flags)?, *offset, data)
        }
        Step::Truncate { place, size } => {
            guest.truncate(node(guest, place)?, *size).map(|_| Vec::new())
        }
        Step::MakeDirectory(place) => {
            guest.make_directory(parent(guest, place)?, place.1).map(|_| Vec::new())
        }
        Step::MakeLink(place) => {
            guest.make_link(parent(guest, place)?, place.1, "nowhere").map(|_| Vec::new())
        }
        Step::Link { from, to } => {
            let from = node(guest, from)?;
            guest.link(from, parent(guest, to)?, to.1).map(|_| Vec::new())
        }
        Step::Unlink(place) => guest.unlink(parent(guest, place)?, place.1).map(nothing),
        Step::RemoveDirectory(place) => {
            guest.remove_directory(parent(guest, place)?, place.1).map(nothing)
        }
        Step::Rename { from, to } => {
            let (old, new) = (parent(guest, from)?, parent(guest, to)?);
            guest.rename((old, from.1), (new, to.1), 0).map(nothing)
        }
        Step::SetMode { place, mode } => {
            guest.set_mode(node(guest, place)?, *mode).map(|_| Vec::new())
        }
        Step::Read(place) => {
            let node = node(guest, place)?;
            let handle = guest.open(node, open::READ_ONLY)?;
            let read = guest.read(node, handle, 0, 1000);
            guest.release(node, handle)?;
            read
        }
        Step::List(place) => {
            let names = guest.names(node(guest, place)?)?;
            Ok(names.join("\n").into_bytes())
        }
    }
}

/// Takes a step on a plain directory.
pub(super) fn on_plain(root: &Path, step: &Step) -> io::Result<Vec<u8>> {
    let write = |file: File, offset, data: &[u8]| file.write_all_at(data, offset);
    let no_follow = 0o400_000;
    let done = match step {
        Step::Create { place, exclusive, mode, data } => {
            let path = place.below(root);
            let is_new = fs::symlink_metadata(&path).is_err();
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(*mode).custom_flags(no_follow);
            if *exclusive {
                options.create_new(true)
            } else {
                options.create(true)
            };
            let file = options.open(&path)?;
            if is_new {
                file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(*mode))?;
            }
            write(file, 0, data)
        }
        Step::Write { place, truncate, offset, data } => {
            let mut options = OpenOptions::new();
            options.write(true).truncate(*truncate).custom_flags(no_follow);
            write(options.open(place.below(root))?, *offset, data)
        }
        Step::Truncate { place, size } => {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(no_follow);
            options.open(place.below(root))?.set_len(*size)
        }
        Step::MakeDirectory(place) => fs::create_dir(place.below(root)),
        Step::MakeLink(place) => symlink("nowhere", place.below(root)),
        Step::Link { from, to } => fs::hard_link(from.below(root), to.below(root)),
        Step::Unlink(place) => fs::remove_file(place.below(root)),
        Step::RemoveDirectory(place) => fs::remove_dir(place.below(root)),
        Step::Rename { from, to } => fs::rename(from.below(root), to.below(root)),
        Step::SetMode { place, mode } => {
            let path = place.below(root);
            if fs::symlink_metadata(&path)?.is_symlink() {
                return Err(io::ErrorKind::Unsupported.into());
            }
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(*mode))
        }
        Step::Read(place) => {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(no_follow);
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut options.open(place.below(root))?, &mut bytes)?;
            return Ok(bytes);
        }
        Step::List(place) => {
            let path = place.below(root);
            if fs::symlink_metadata(&path)?.is_symlink() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            let mut names: Vec<_> = fs::read_dir(path)?
                .map(|entry| entry.map(|entry| entry.file_name().into_encoded_bytes()))
                .collect::<Result<_, _>>()?;
            names.sort();
            return Ok(names.join(&b'\n'));
        }
    };
    done.map(|()| Vec::new())
}

/// Returns everything about a tree that both sides have in common.
pub(super) fn tree(root: &Path, directory: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut entries: Vec<_> =
        fs::read_dir(directory).expect("listed").map(|entry| entry.expect("read").path()).collect();
    entries.sort();
    for path in entries {
        let metadata = fs::symlink_metadata(&path).expect("there");
        let content = match metadata.is_file() {
            true => format!("{:?} x{}", fs::read(&path).expect("read"), metadata.nlink()),
            false => String::new(),
        };
        // That of the plain directory depends on this process's umask.
        let mode = if metadata.is_dir() { metadata.mode() & !0o022 } else { metadata.mode() };
        let name = path.strip_prefix(root).expect("below").display().to_string();
        lines.push(format!("{name} {mode:o} {content}"));
        if metadata.is_dir() {
            lines.extend(tree(root, &path));
        }
    }
    lines
}

/// Returns every node that the guest can see, by path, with what it sees of it.
fn seen(guest: &Guest, node: u64, path: &Path, lines: &mut Vec<String>) {
    for name in guest.names(node).expect("listed") {
        let path = path.join(&name);
        let entry = guest.look_up(node, &name).expect("there");
        let metadata = fs::symlink_metadata(guest.host.join(&path)).expect("there");
        let attributes = entry.attributes;
        assert_eq!(
            (attributes.inode, attributes.mode),
            (metadata.ino(), metadata.mode()),
            "{path:?}"
        );
        assert_eq!(u64::from(attributes.links), metadata.nlink());
        assert_eq!(attributes.size, metadata.len());
        lines.push(path.display().to_string());
        if metadata.is_dir() {
            seen(guest, entry.node, &path, lines);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn the_server_does_what_a_plain_directory_does(
        steps in proptest::collection::vec(step(), 1..40),
        by_components in any::<bool>(),
        is_watched in any::<bool>(),
    ) {
        let mut guest = if by_components { Guest::by_components() } else { Guest::new() };
        if is_watched {
            guest.server.watch(100).expect("watched");
        }
        let plain = guest.outside("plain");
        fs::create_dir(&plain).expect("made");
        for step in &steps {
            // The guest's kernel does not look up names in links.
            let is_in_link = |place: &Place| {
                place.0.is_some_and(|name| plain.join(name).is_symlink())
            };
            if places(step).into_iter().any(is_in_link) {
                continue;
            }
            let served = through_server(&guest, step).map_err(coarse);
            let expected = on_plain(&plain, step).map_err(|error| coarse(number(&error)));
            prop_assert_eq!(&served, &expected, "{:?}", step);
            prop_assert_eq!(tree(&guest.host, &guest.host), tree(&plain, &plain));
            // What the guest does is no news to it.
            prop_assert_eq!(guest.server.changes().changes, [], "{:?}", step);
        }
        let mut lines = Vec::new();
        seen(&guest, ROOT, Path::new(""), &mut lines);
        lines.sort();
        let mut expected: Vec<_> = tree(&plain, &plain);
        expected.iter_mut().for_each(|line| {
            line.truncate(line.find(' ').expect("a name"));
        });
        expected.sort();
        prop_assert_eq!(lines, expected);
        guest.call(opcode::STATFS, ROOT, body()).expect("still answering");
    }
}

fn places(step: &Step) -> Vec<&Place> {
    match step {
        Step::Create { place, .. }
        | Step::Write { place, .. }
        | Step::Truncate { place, .. }
        | Step::MakeDirectory(place)
        | Step::MakeLink(place)
        | Step::Unlink(place)
        | Step::RemoveDirectory(place)
        | Step::SetMode { place, .. }
        | Step::Read(place)
        | Step::List(place) => vec![place],
        Step::Link { from, to } | Step::Rename { from, to } => vec![from, to],
    }
}

fn number(error: &io::Error) -> Error {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::NotADirectory => 20,
        _ => 95,
    })
}

/// Returns an error without distinctions that the guest's kernel makes before it asks.
fn coarse(error: Error) -> Error {
    match error {
        // Reading a directory, or writing to a link.
        21 | 40 | 22 => 21,
        other => other,
    }
}
