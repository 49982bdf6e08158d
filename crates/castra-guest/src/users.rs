//! Users and groups from `/etc/passwd` and `/etc/group`, parsed here: a static binary has no name
//! service switch.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use tokio::sync::oneshot;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Shell of a user without one in `/etc/passwd`, as `passwd(5)` says.
const DEFAULT_SHELL: &str = "/bin/sh";

/// A user who logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    /// Supplementary groups, including the primary one.
    pub(crate) groups: Vec<Gid>,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

impl User {
    /// Returns the user with this name, if this process may switch to it.
    ///
    /// # Errors
    /// The users cannot be read, for instance because file descriptors ran out.
    pub(crate) fn find(name: &str) -> io::Result<Option<Arc<Self>>> {
        let stamps = [Stamp::of(PASSWD)?, Stamp::of(GROUP)?];
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && last.stamps == stamps
            && last.user.name == name
        {
            return Ok(Some(Arc::clone(&last.user)));
        }
        let (passwd, group) = (read(PASSWD)?, read(GROUP)?);
        let own = rustix::process::geteuid();
        let user = parse(&passwd, &group, name);
        let user = user.filter(|user| own.is_root() || own == user.uid).map(Arc::new);
        *last = user
            .clone()
            .filter(|_| stamps.iter().all(Stamp::is_old))
            .map(|user| Found { stamps, user });
        Ok(user)
    }

    /// Turns the calling thread into this user for good. Async-signal-safe.
    pub(crate) fn become_in_child(&self) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            set_thread_groups(&self.groups)?;
            // The agent has no other ids than root's.
            if !(self.uid.is_root() && self.gid.is_root()) {
                set_thread_gid(self.gid)?;
                set_thread_uid(self.uid)?;
            }
        }
        Ok(())
    }

    /// Gives the calling thread this user's rights on files. Keeps its real ids, so that only root
    /// may signal it.
    pub(crate) fn act_in_thread(&self) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            set_thread_groups(&self.groups)?;
            rustix::thread::set_thread_res_gid(None, Some(self.gid), None)?;
            rustix::thread::set_thread_res_uid(None, Some(self.uid), None)?;
        }
        Ok(())
    }

    /// Runs `work` with this user's rights on files, on a thread that ends with it.
    ///
    /// # Errors
    /// Those of starting a thread, of taking the rights and of `work`.
    pub(crate) async fn run_in_thread<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new().name("castra-user".into()).spawn(move || {
            // Fails if the connection has ended meanwhile.
            let _ = sender.send(self.act_in_thread().and_then(|()| work()));
        })?;
        receiver.await.map_err(|_| io::ErrorKind::BrokenPipe)?
    }
}

/// User who was found last. Most commands are one user's, and reading the files takes an emulated
/// CPU longer than a look at their times.
static LAST: Mutex<Option<Found>> = Mutex::new(None);

struct Found {
    stamps: [Stamp; 2],
    user: Arc<User>,
}

/// Version of a file, or `None` if there is none: its device and inode, size, and times of its last
/// changes.
#[derive(PartialEq, Eq)]
struct Stamp(Option<[i128; 5]>);

/// Time after which a further change of a file gives it another time, on any filesystem.
const OLD: Duration = Duration::from_secs(2);

impl Stamp {
    fn of(path: &str) -> io::Result<Self> {
        let found = match rustix::fs::stat(path) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(Self(None)),
            Err(error) => return Err(error.into()),
        };
        let ns = |seconds: i64, ns: u64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Ok(Self(Some([
            found.st_dev.into(),
            found.st_ino.into(),
            found.st_size.into(),
            ns(found.st_mtime, found.st_mtime_nsec),
            ns(found.st_ctime, found.st_ctime_nsec),
        ])))
    }

    /// Returns `true` if a file that changes from now on has another version.
    fn is_old(&self) -> bool {
        let Some([.., changed]) = self.0 else { return true };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.checked_sub(OLD)
            .and_then(|then| i128::try_from(then.as_nanos()).ok())
            .is_some_and(|then| changed < then)
    }
}

/// Reads a file as text. A missing one has no entries.
fn read(path: &str) -> io::Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn parse(passwd: &str, group: &str, name: &str) -> Option<User> {
    let fields: Vec<&str> = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() == 7 && fields[0] == name)?;
    let uid = Uid::from_raw(number(fields[2])?);
    let gid = Gid::from_raw(number(fields[3])?);
    let shell = if fields[6].is_empty() { DEFAULT_SHELL } else { fields[6] };
    let groups =
        std::iter::once(gid).chain(groups_of(group, name).filter(|other| *other != gid)).collect();
    Some(User {
        name: name.to_owned(),
        uid,
        gid,
        groups,
        home: PathBuf::from(if fields[5].is_empty() { "/" } else { fields[5] }),
        shell: PathBuf::from(shell),
    })
}

fn groups_of<'a>(group: &'a str, name: &'a str) -> impl Iterator<Item = Gid> + 'a {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':').skip(2);
        let gid = number(fields.next()?)?;
        let members = fields.next()?;
        members.split(',').any(|member| member == name).then(|| Gid::from_raw(gid))
    })
}

/// Parses an id. Rejects `u32::MAX`, which means "no change" to the kernel.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use rustix::process::{getegid, geteuid};

    use super::*;

    /// Returns the user who runs the tests, with this shell.
    pub(crate) fn own_user(shell: &str) -> Arc<User> {
        Arc::new(User {
            name: "user".into(),
            uid: geteuid(),
            gid: getegid(),
            groups: rustix::process::getgroups().expect("has groups"),
            home: "/".into(),
            shell: shell.into(),
        })
    }

    const USERS: &str = "root:x:0:0:root:/root:/bin/ash\n\
                          broken:x:zero:0::/:\n\
                          alpine:x:1000:1000:Linux User,,,:/home/alpine:\n\
                          odd:x:4294967295:1000::/:/bin/sh\n";
    const GROUPS: &str =
        "root:x:0:root\nwheel:x:10:root,alpine\nalpine:x:1000:alpine\nvideo:x:27:alpines\n";

    #[test]
    fn a_user_has_ids_groups_home_and_shell() {
        let user = parse(USERS, GROUPS, "alpine").expect("exists");
        assert_eq!((user.uid.as_raw(), user.gid.as_raw()), (1000, 1000));
        assert_eq!(user.groups.iter().map(|gid| gid.as_raw()).collect::<Vec<_>>(), [1000, 10]);
        assert_eq!(user.home, PathBuf::from("/home/alpine"));
        assert_eq!(user.shell, PathBuf::from(DEFAULT_SHELL));
        assert_eq!(parse(USERS, GROUPS, "root").expect("exists").shell, PathBuf::from("/bin/ash"));
    }

    #[test]
    fn unknown_and_broken_users_do_not_exist() {
        for name in ["nobody", "broken", "odd", ""] {
            assert_eq!(parse(USERS, GROUPS, name), None, "{name}");
        }
    }

    #[test]
    fn a_change_of_a_file_is_seen() {
        let path = std::env::temp_dir().join(format!("castra-users-{}", std::process::id()));
        let path = path.to_str().expect("is text");
        let stamp = || Stamp::of(path).expect("looked at");
        assert!(stamp() == Stamp(None) && stamp().is_old());
        std::fs::write(path, "a").expect("writes");
        let first = stamp();
        // Another change within a tick of the clock may leave all times as they are.
        assert!(first != Stamp(None) && !first.is_old());
        std::fs::write(path, "ab").expect("writes");
        let longer = stamp();
        std::fs::write(format!("{path}.new"), "cd").expect("writes");
        std::fs::rename(format!("{path}.new"), path).expect("renames");
        assert!(first != longer && longer != stamp());
        std::fs::remove_file(path).expect("removes");
        assert!(Stamp(Some([1, 1, 1, 1, 1])).is_old());
    }
}
