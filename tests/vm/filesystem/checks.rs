//! Promises of POSIX and Linux to a single program.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    symlink,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    UTIME_OMIT, fallocate, flock, mkdirat, open, renameat_with, statfs, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::umask;

/// A promise, and its name.
type Check = (&'static str, fn(&Path));

const CHECKS: [Check; 25] = [
    ("open", opening),
    ("flags of handles", access),
    ("O_APPEND", appending),
    ("names", names),
    ("unlink", unlinking),
    ("rename of files", renaming_files),
    ("rename of directories", renaming_directories),
    ("renameat2", renaming_with_flags),
    ("link", hard_links),
    ("symlink", symbolic_links),
    ("mkdir and rmdir", directories),
    ("truncate", truncating),
    ("holes", holes),
    ("fallocate", allocating),
    ("chmod and umask", modes),
    ("utimens", times),
    ("times that change by themselves", implied_times),
    ("readdir", listing),
    ("readdir while files go", listing_while_removing),
    ("statfs and fsync", syncing),
    ("flock", locks),
    ("copies", copies),
    ("fifo and socket", special_files),
    ("depth", depth),
    ("many handles", many_handles),
];

/// Runs all checks, each in a directory of its own.
#[expect(clippy::print_stdout, reason = "a failure is the last one")]
pub(super) fn run(directory: &Path) {
    umask(Mode::from_raw_mode(0o022));
    for (number, (name, check)) in CHECKS.iter().enumerate() {
        println!("{name}");
        let own = directory.join(format!("check-{number}"));
        fs::create_dir(&own).expect("a directory");
        check(&own);
        fs::remove_dir_all(&own).expect("all removed");
    }
}

#[track_caller]
fn fails<T: std::fmt::Debug>(outcome: io::Result<T>, with: Errno) {
    let error = outcome.expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(with.raw_os_error()), "{error}");
}

fn contents(path: &Path) -> String {
    fs::read_to_string(path).expect("read")
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("an entry").ino()
}

fn opening(at: &Path) {
    let (file, link) = (at.join("file"), at.join("link"));
    fails(File::open(&file), Errno::NOENT);
    File::create_new(&file).expect("new");
    fails(File::create_new(&file), Errno::EXIST);
    symlink("nowhere", &link).expect("a link");
    fails(File::create_new(&link), Errno::EXIST);
    fails(File::open(&link), Errno::NOENT);
    fs::write(&file, "long").expect("written");
    fs::write(&file, "x").expect("written");
    assert_eq!(contents(&file), "x");
    let with = |flags: OFlags, path: &Path| {
        open(path, flags, Mode::empty()).map(drop).map_err(io::Error::from)
    };
    fails(with(OFlags::RDONLY | OFlags::NOFOLLOW, &link), Errno::LOOP);
    fails(with(OFlags::RDONLY | OFlags::DIRECTORY, &file), Errno::NOTDIR);
    fails(with(OFlags::WRONLY, at), Errno::ISDIR);
    fails(with(OFlags::RDONLY, &file.join("below")), Errno::NOTDIR);
    fails(with(OFlags::RDONLY, &at.join("none/below")), Errno::NOENT);
    with(OFlags::RDONLY | OFlags::DIRECTORY, at).expect("a directory");
}

fn access(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "0123456789").expect("written");
    let mut reader = File::open(&path).expect("opened");
    fails(reader.write(b"x"), Errno::BADF);
    let mut writer = OpenOptions::new().write(true).open(&path).expect("opened");
    fails(writer.read(&mut [0]), Errno::BADF);
    writer.write_all_at(b"ab", 3).expect("written");
    let mut read = [0; 4];
    reader.read_exact_at(&mut read, 2).expect("read");
    assert_eq!(&read, b"2ab5", "one handle sees what another has written");
    assert_eq!(reader.read_at(&mut read, 10).expect("the end"), 0);
    assert_eq!(reader.read_at(&mut read, 1 << 40).expect("far behind it"), 0);
    let rewritten = reader.seek(SeekFrom::End(-1)).expect("sought");
    assert_eq!(rewritten, 9);
    fails(reader.seek(SeekFrom::Current(-100)), Errno::INVAL);
}

fn appending(at: &Path) {
    let path = at.join("file");
    let append = || OpenOptions::new().append(true).create(true).open(&path).expect("opened");
    let (mut one, mut two) = (append(), append());
    for round in 0..20 {
        one.write_all(format!("one {round}\n").as_bytes()).expect("written");
        two.seek(SeekFrom::Start(0)).expect("sought");
        two.write_all(format!("two {round}\n").as_bytes()).expect("written");
    }
    let expected: String = (0..20).map(|round| format!("one {round}\ntwo {round}\n")).collect();
    assert_eq!(contents(&path), expected);
}

fn names(at: &Path) {
    let longest = at.join("n".repeat(255));
    fs::write(&longest, "x").expect("255 bytes");
    fails(fs::write(at.join("n".repeat(256)), "x"), Errno::NAMETOOLONG);
    fails(File::open(at.join("n".repeat(256))), Errno::NAMETOOLONG);
    fs::remove_file(&longest).expect("removed");
    let all: BTreeSet<Vec<u8>> =
        (1..=255).filter(|byte| *byte != b'/').map(|byte| vec![b'x', byte, b'y']).collect();
    for name in &all {
        fs::write(at.join(OsStr::from_bytes(name)), name).expect("written");
    }
    let found: BTreeSet<Vec<u8>> = fs::read_dir(at)
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name().as_bytes().to_vec())
        .collect();
    assert_eq!(found, all);
    for name in &all {
        assert_eq!(fs::read(at.join(OsStr::from_bytes(name))).expect("read"), *name);
    }
}

fn unlinking(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "kept").expect("written");
    let mut open = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
    let before = inode(&path);
    fs::remove_file(&path).expect("removed");
    fails(fs::remove_file(&path), Errno::NOENT);
    fails(fs::metadata(&path), Errno::NOENT);
    // What is open lives on, and a new file of that name is another one.
    fs::write(&path, "another").expect("written");
    assert_ne!(inode(&path), before);
    let mut text = String::new();
    open.read_to_string(&mut text).expect("read");
    assert_eq!(text, "kept");
    open.write_all(b" and written").expect("written");
    open.seek(SeekFrom::Start(0)).expect("sought");
    text.clear();
    open.read_to_string(&mut text).expect("read");
    assert_eq!(text, "kept and written");
    assert_eq!(open.metadata().expect("looked at").nlink(), 0);
    assert_eq!(contents(&path), "another");
    fails(fs::remove_file(at), Errno::ISDIR);
}

fn renaming_files(at: &Path) {
    let [from, to] = ["from", "to"].map(|name| at.join(name));
    fails(fs::rename(&from, &to), Errno::NOENT);
    fs::write(&from, "new").expect("written");
    fs::write(&to, "old").expect("written");
    let mut old = File::open(&to).expect("opened");
    let mut handle = OpenOptions::new().append(true).open(&from).expect("opened");
    let number = inode(&from);
    fs::rename(&from, &to).expect("renamed");
    assert_eq!((contents(&to), inode(&to)), ("new".to_owned(), number));
    fails(fs::metadata(&from), Errno::NOENT);
    let mut text = String::new();
    old.read_to_string(&mut text).expect("read");
    assert_eq!(text, "old", "what was replaced lives on where it is open");
    handle.write_all(b"er").expect("written");
    assert_eq!(contents(&to), "newer", "a handle follows its file");
    fs::rename(&to, &to).expect("to itself");
    fs::hard_link(&to, &from).expect("linked");
    fs::rename(&from, &to).expect("no effect");
    assert!(from.exists() && to.exists(), "two names of one file");
    let directory = at.join("directory");
    fs::create_dir(&directory).expect("made");
    fails(fs::rename(&to, &directory), Errno::ISDIR);
    fails(fs::rename(&directory, &to), Errno::NOTDIR);
    fs::rename(&to, directory.join("moved")).expect("into another directory");
    assert_eq!(contents(&directory.join("moved")), "newer");
}

fn renaming_directories(at: &Path) {
    let [full, empty] = ["full", "empty"].map(|name| at.join(name));
    fs::create_dir_all(full.join("inner/innermost")).expect("made");
    fs::write(full.join("inner/file"), "x").expect("written");
    fs::create_dir(&empty).expect("made");
    let inside = open(full.join("inner"), OFlags::RDONLY, Mode::empty()).expect("opened");
    fails(fs::rename(&full, full.join("inner/innermost/own")), Errno::INVAL);
    let onto_full = fs::rename(&empty, &full).expect_err("not empty");
    let onto_full = onto_full.raw_os_error();
    assert!([Errno::NOTEMPTY, Errno::EXIST].map(|it| Some(it.raw_os_error())).contains(&onto_full));
    fs::rename(&full, &empty).expect("onto an empty one");
    assert_eq!(contents(&empty.join("inner/file")), "x");
    // An open directory is still itself.
    mkdirat(&inside, "later", Mode::from_raw_mode(0o755)).expect("made");
    assert!(empty.join("inner/later").is_dir());
    unlinkat(&inside, "file", AtFlags::empty()).expect("removed");
    assert!(!empty.join("inner/file").exists());
}

fn renaming_with_flags(at: &Path) {
    let [one, two] = ["one", "two"].map(|name| at.join(name));
    fs::write(&one, "1").expect("written");
    fs::create_dir(&two).expect("made");
    let rename = |flags| renameat_with(CWD, &one, CWD, &two, flags).map_err(io::Error::from);
    fails(rename(RenameFlags::NOREPLACE), Errno::EXIST);
    rename(RenameFlags::EXCHANGE).expect("exchanged");
    assert!(one.is_dir() && contents(&two) == "1");
    fs::remove_dir(&one).expect("removed");
    fails(rename(RenameFlags::EXCHANGE), Errno::NOENT);
    fs::rename(&two, &one).expect("renamed");
    rename(RenameFlags::NOREPLACE).expect("nothing to replace");
    assert_eq!(contents(&two), "1");
}

fn hard_links(at: &Path) {
    let [one, two] = ["one", "two"].map(|name| at.join(name));
    let links = |path: &Path| fs::metadata(path).expect("looked at").nlink();
    fs::write(&one, "x").expect("written");
    assert_eq!(links(&one), 1);
    fs::hard_link(&one, &two).expect("linked");
    assert_eq!((links(&one), links(&two), inode(&one)), (2, 2, inode(&two)));
    fs::write(&two, "written by the other name").expect("written");
    assert_eq!(contents(&one), "written by the other name");
    fails(fs::hard_link(&one, &two), Errno::EXIST);
    fails(fs::hard_link(at, at.join("of-directory")), Errno::PERM);
    fails(fs::hard_link(at.join("none"), at.join("new")), Errno::NOENT);
    fs::remove_file(&one).expect("removed");
    assert_eq!((links(&two), contents(&two).len()), (1, 25));
}

fn symbolic_links(at: &Path) {
    let link = at.join("link");
    for target in ["x", "/nowhere/at/all", "../..", "ä ö", &"long/".repeat(200)] {
        symlink(target, &link).expect("a link");
        assert_eq!(fs::read_link(&link).expect("read"), PathBuf::from(target));
        let metadata = fs::symlink_metadata(&link).expect("looked at");
        assert!(metadata.is_symlink());
        assert_eq!(metadata.len(), target.len() as u64);
        fails(symlink(target, &link), Errno::EXIST);
        fs::remove_file(&link).expect("removed");
    }
    symlink("link", &link).expect("a loop");
    fails(File::open(&link), Errno::LOOP);
    fails(fs::read_link(at), Errno::INVAL);
    fs::remove_file(&link).expect("removed");
    fs::create_dir(at.join("real")).expect("made");
    fs::write(at.join("real/file"), "x").expect("written");
    symlink("real", &link).expect("a link");
    assert_eq!(contents(&link.join("file")), "x");
    fails(fs::remove_dir(&link), Errno::NOTDIR);
    fs::rename(&link, at.join("other")).expect("the link, not its target");
    assert!(at.join("real/file").exists());
}

fn directories(at: &Path) {
    let directory = at.join("directory");
    fs::create_dir(&directory).expect("made");
    fails(fs::create_dir(&directory), Errno::EXIST);
    fails(fs::create_dir(at.join("none/below")), Errno::NOENT);
    fails(fs::remove_dir(at.join("none")), Errno::NOENT);
    fs::write(directory.join("file"), "x").expect("written");
    fails(fs::create_dir(directory.join("file")), Errno::EXIST);
    fails(fs::create_dir(directory.join("file/below")), Errno::NOTDIR);
    fails(fs::remove_dir(directory.join("file")), Errno::NOTDIR);
    let full = fs::remove_dir(&directory).expect_err("not empty").raw_os_error();
    assert!([Errno::NOTEMPTY, Errno::EXIST].map(|it| Some(it.raw_os_error())).contains(&full));
    fs::remove_file(directory.join("file")).expect("removed");
    let open = open(&directory, OFlags::RDONLY, Mode::empty()).expect("opened");
    fs::remove_dir(&directory).expect("removed");
    let later = mkdirat(&open, "later", Mode::from_raw_mode(0o755));
    assert_eq!(later, Err(Errno::NOENT), "nothing is made in a directory that is gone");
    fs::DirBuilder::new().mode(0o700).create(&directory).expect("made");
    assert_eq!(fs::metadata(&directory).expect("looked at").mode() & 0o7777, 0o700);
}

fn truncating(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "0123456789").expect("written");
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    let other = File::open(&path).expect("opened");
    file.set_len(4).expect("cut");
    assert_eq!(contents(&path), "0123");
    file.set_len(8).expect("grown");
    assert_eq!(contents(&path), "0123\0\0\0\0", "no old byte comes back");
    assert_eq!(other.metadata().expect("looked at").len(), 8);
    file.set_len(0).expect("emptied");
    assert_eq!(other.read_at(&mut [0], 0).expect("read"), 0);
    file.set_len(5 << 30).expect("larger than 4 GiB");
    file.write_all_at(b"end", (5 << 30) - 3).expect("written");
    let mut end = [0; 4];
    other.read_exact_at(&mut end, (5 << 30) - 4).expect("read");
    assert_eq!(&end, b"\0end");
    fails(other.set_len(1), Errno::INVAL);
    fails(OpenOptions::new().write(true).truncate(true).open(at).map(drop), Errno::ISDIR);
}

fn holes(at: &Path) {
    let path = at.join("file");
    let mut file = File::create_new(&path).expect("made");
    file.seek(SeekFrom::Start(1 << 20)).expect("sought");
    file.write_all(b"end").expect("written");
    let read = fs::read(&path).expect("read");
    assert_eq!(read.len(), (1 << 20) + 3);
    assert!(read[..1 << 20].iter().all(|byte| *byte == 0));
    let seek = |from| rustix::fs::seek(&file, from);
    let data = seek(rustix::fs::SeekFrom::Data(0)).expect("there are data");
    assert!(data <= 1 << 20);
    let hole = seek(rustix::fs::SeekFrom::Hole(1 << 20)).expect("the end is a hole");
    assert_eq!(hole, (1 << 20) + 3);
    assert_eq!(seek(rustix::fs::SeekFrom::Data((1 << 20) + 3)), Err(Errno::NXIO));
}

fn allocating(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "x".repeat(100_000)).expect("written");
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    let allocate = |flags, from, bytes| match fallocate(&file, flags, from, bytes) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error, Errno::OPNOTSUPP);
            false
        }
    };
    if allocate(FallocateFlags::empty(), 0, 200_000) {
        let read = fs::read(&path).expect("read");
        assert_eq!(read.len(), 200_000);
        assert!(read[..100_000].iter().all(|byte| *byte == b'x'));
        assert!(read[100_000..].iter().all(|byte| *byte == 0));
    }
    if allocate(FallocateFlags::KEEP_SIZE, 0, 300_000) {
        assert_eq!(file.metadata().expect("looked at").len(), 200_000);
    }
    if allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 10_000, 50_000) {
        let read = fs::read(&path).expect("read");
        assert_eq!(read.len(), 200_000);
        let zeros = read.iter().position(|byte| *byte == 0);
        assert_eq!(zeros, Some(10_000));
        assert!(read[10_000..60_000].iter().all(|byte| *byte == 0));
        assert_eq!(read[60_000], b'x');
    }
}

fn modes(at: &Path) {
    let path = at.join("file");
    let mode = |path: &Path| fs::metadata(path).expect("looked at").mode() & 0o7777;
    File::create_new(&path).expect("made");
    assert_eq!(mode(&path), 0o644, "the umask counts");
    for wanted in [0o600, 0o755, 0o444, 0o000, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(wanted)).expect("changed");
        assert_eq!(mode(&path), wanted);
    }
    let own = at.join("own");
    OpenOptions::new().write(true).create_new(true).mode(0o751).open(&own).expect("made");
    assert_eq!(mode(&own), 0o751);
    // A mode that forbids writing is no obstacle for the handle that has made the file.
    let read_only = at.join("read-only");
    let options = OpenOptions::new().write(true).create_new(true).mode(0o444).clone();
    options.open(&read_only).expect("made").write_all(b"x").expect("written");
    assert_eq!((mode(&read_only), contents(&read_only).len()), (0o444, 1));
    assert!(fs::metadata(at).expect("looked at").is_dir());
}

fn times(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "x").expect("written");
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let set = |last_access, last_modification| {
        let times = Timestamps { last_access, last_modification };
        utimensat(CWD, &path, &times, AtFlags::empty()).expect("set");
    };
    let of = || {
        let metadata = fs::metadata(&path).expect("looked at");
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        ((metadata.atime(), metadata.atime_nsec()), modified)
    };
    set(time(1_000_000_000, 123_456_789), time(2_000_000_000, 987_654_321));
    assert_eq!(of(), ((1_000_000_000, 123_456_789), (2_000_000_000, 987_654_321)));
    set(time(0, UTIME_OMIT), time(1_500_000_000, 5));
    assert_eq!(of(), ((1_000_000_000, 123_456_789), (1_500_000_000, 5)));
    set(time(1_100_000_000, 0), time(0, UTIME_OMIT));
    assert_eq!(of(), ((1_100_000_000, 0), (1_500_000_000, 5)));
    let modified = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(7);
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    file.set_modified(modified).expect("set");
    assert_eq!(of().1, (7, 0));
}

/// Sets a file's time of modification to a distant past.
fn age(path: &Path) {
    let past = Timespec { tv_sec: 1_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: past, last_modification: past };
    utimensat(CWD, path, &times, AtFlags::empty()).expect("set");
}

fn implied_times(at: &Path) {
    let (path, inner) = (at.join("file"), at.join("inner"));
    fs::write(&path, "x").expect("written");
    fs::create_dir(&inner).expect("made");
    let is_old = |path: &Path| fs::metadata(path).expect("looked at").mtime() == 1_000_000;
    let changes = |path: &Path, what: &str, change: &dyn Fn()| {
        age(path);
        assert!(is_old(path));
        change();
        assert!(!is_old(path), "{what}");
    };
    changes(&path, "a write", &|| {
        let file = OpenOptions::new().append(true).open(&path).expect("opened");
        (&file).write_all(b"y").expect("written");
    });
    changes(&path, "O_TRUNC", &|| drop(File::create(&path).expect("opened")));
    changes(&path, "a truncation", &|| {
        OpenOptions::new().write(true).open(&path).expect("opened").set_len(9).expect("grown");
    });
    changes(&inner, "a new file", &|| fs::write(inner.join("a"), "").expect("written"));
    changes(&inner, "a rename", &|| fs::rename(inner.join("a"), inner.join("b")).expect("renamed"));
    changes(&inner, "a removal", &|| fs::remove_file(inner.join("b")).expect("removed"));
    changes(&inner, "a directory", &|| fs::create_dir(inner.join("c")).expect("made"));
    age(&path);
    let before = fs::metadata(&path).expect("looked at");
    thread::sleep(std::time::Duration::from_millis(20));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
    let after = fs::metadata(&path).expect("looked at");
    let changed = |metadata: &fs::Metadata| (metadata.ctime(), metadata.ctime_nsec());
    assert!(changed(&after) > changed(&before) && after.mtime() == before.mtime());
}

fn listing(at: &Path) {
    let all: BTreeSet<String> = (0..1000).map(|number| format!("file-{number}")).collect();
    for name in &all {
        File::create_new(at.join(name)).expect("made");
    }
    let list = || -> Vec<String> {
        fs::read_dir(at)
            .expect("opened")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect()
    };
    let listed = list();
    assert_eq!(listed.len(), 1000, "each once");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), all);
    let opened = open(at, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("opened");
    let mut directory = rustix::fs::Dir::new(opened).expect("a directory");
    let names = |directory: &mut rustix::fs::Dir| -> BTreeSet<Vec<u8>> {
        let entries = directory.by_ref().map(|entry| entry.expect("an entry"));
        entries.map(|entry| entry.file_name().to_bytes().to_vec()).collect()
    };
    let first = names(&mut directory);
    assert_eq!(first.len(), 1002, "with . and ..");
    File::create_new(at.join("later")).expect("made");
    directory.rewind();
    assert_eq!(names(&mut directory).len(), 1003, "a list from the beginning has what is new");
}

fn listing_while_removing(at: &Path) {
    for number in 0..500 {
        File::create_new(at.join(number.to_string())).expect("made");
    }
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(at).expect("opened") {
        let entry = entry.expect("an entry");
        assert!(seen.insert(entry.file_name()), "twice");
        fs::remove_file(entry.path()).expect("removed");
    }
    assert_eq!(seen.len(), 500, "a removal hides no other file");
    assert_eq!(fs::read_dir(at).expect("opened").count(), 0);
}

fn syncing(at: &Path) {
    let status = statfs(at).expect("known");
    assert!(status.f_blocks > 0 && status.f_bavail <= status.f_blocks && status.f_namelen >= 255);
    let mut file = File::create_new(at.join("file")).expect("made");
    file.write_all(b"x").expect("written");
    file.sync_data().expect("synced");
    file.sync_all().expect("synced");
    File::open(at).expect("opened").sync_all().expect("the directory, too");
}

fn locks(at: &Path) {
    let path = at.join("file");
    let [one, two] = [(); 2].map(|()| File::create(&path).expect("opened"));
    flock(&one, FlockOperation::LockExclusive).expect("free");
    let second = || flock(&two, FlockOperation::NonBlockingLockShared);
    assert_eq!(second(), Err(Errno::AGAIN));
    flock(&one, FlockOperation::LockShared).expect("converted");
    second().expect("shared");
    drop(one);
    flock(&two, FlockOperation::NonBlockingLockExclusive).expect("alone");
}

fn copies(at: &Path) {
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|number| (number % 251) as u8).collect();
    let [from, to, spliced] = ["from", "to", "spliced"].map(|name| at.join(name));
    fs::write(&from, &bytes).expect("written");
    fs::copy(&from, &to).expect("copied");
    assert!(fs::read(&to).expect("read") == bytes);
    let (mut source, mut target) =
        (File::open(&from).expect("opened"), File::create(&spliced).expect("made"));
    io::copy(&mut source, &mut target).expect("copied");
    assert!(fs::read(&spliced).expect("read") == bytes);
    fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).expect("changed");
    fs::copy(&from, &to).expect("copied");
    assert_eq!(fs::metadata(&to).expect("looked at").mode() & 0o777, 0o755);
}

fn special_files(at: &Path) {
    let fifo = at.join("fifo");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, &fifo, kind, Mode::from_raw_mode(0o600), 0).expect("made");
    let reader = {
        let fifo = fifo.clone();
        thread::spawn(move || fs::read_to_string(fifo).expect("read"))
    };
    fs::write(&fifo, "through a fifo").expect("written");
    assert_eq!(reader.join().expect("ended"), "through a fifo");
    let socket = at.join("socket");
    let listener = UnixListener::bind(&socket).expect("bound");
    let client = thread::spawn(move || {
        UnixStream::connect(&socket).expect("connected").write_all(b"hello").expect("written");
    });
    let mut text = String::new();
    listener.accept().expect("accepted").0.read_to_string(&mut text).expect("read");
    client.join().expect("ended");
    assert_eq!(text, "hello");
}

fn depth(at: &Path) {
    let part = "d".repeat(60);
    let mut path = at.to_owned();
    for _ in 0..50 {
        path.push(&part);
        fs::create_dir(&path).expect("made");
    }
    fs::write(path.join("file"), "deep").expect("written");
    assert_eq!(contents(&path.join("file")), "deep");
    assert_eq!(fs::canonicalize(&path).expect("resolved").components().count(), {
        fs::canonicalize(at).expect("resolved").components().count() + 50
    });
}

fn many_handles(at: &Path) {
    let handles: Vec<File> = (0..400)
        .map(|number| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true);
            options.open(at.join(number.to_string())).expect("opened")
        })
        .collect();
    for (number, mut handle) in handles.iter().enumerate() {
        handle.write_all(number.to_string().as_bytes()).expect("written");
    }
    for (number, handle) in handles.iter().enumerate() {
        let mut read = vec![0; number.to_string().len()];
        handle.read_exact_at(&mut read, 0).expect("read");
        assert_eq!(read, number.to_string().as_bytes());
    }
}
