//! Context of every operation: the environment, read once, and the reporter.

mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use ureq::http::Uri;

use crate::cancel::Cancel;
use crate::error::{Explain, Kind, kind_of_io};
use crate::layout::{CacheLayout, UserStateLayout};
use crate::logs::LogWatch;
use crate::report::{Reporter, Traced};
use crate::trusted;

pub use variables::{
    ACCELERATOR, ALLOW_PRIVATE_SOURCES, BadVariable, EnvironmentError, MIRROR, PrivateSources,
};

/// Environment variables, read once at the edge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// Returns this process's own environment.
    pub fn of_process() -> Self {
        Self { variables: std::env::vars_os().collect() }
    }

    /// Returns an environment of exactly these variables.
    pub fn of<K: Into<OsString>, V: Into<OsString>>(
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self {
            variables: variables
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        }
    }

    /// Returns a variable's value; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<&OsString> {
        self.variables.get(&OsString::from(name)).filter(|value| !value.is_empty())
    }

    /// Returns all variables, as a child process sees them.
    pub fn variables(&self) -> impl Iterator<Item = (&OsString, &OsString)> {
        self.variables.iter()
    }

    /// Returns the part for QEMU and its tools: the paths of programs, libraries and temporary
    /// files, for installations in a place of their own. A guest that has taken over QEMU finds no
    /// token of the user's in it. The tools' messages are parsed, so they are in English.
    #[must_use]
    pub fn for_qemu(&self) -> Self {
        const NAMES: [&str; 5] =
            ["PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "QEMU_MODULE_DIR"];
        let given = NAMES.iter().filter_map(|name| Some((*name, self.get(name)?)));
        Self::of(given).with("LC_ALL", "C")
    }

    /// Returns the environment with one variable set.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Returns the environment without one variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.variables.remove(&OsString::from(name));
        self
    }

    /// Returns a variable's value as text; one that is not UTF-8 counts as unset.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| value.to_str())
    }

    /// Returns `true` for a variable that enables something: set, and neither `0` nor `false`.
    pub fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// Returns the directory for temporary files: `TMPDIR`, or the system's without it.
    pub fn temp_dir(&self) -> PathBuf {
        self.get("TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from)
    }

    /// Returns the home directory.
    ///
    /// # Errors
    /// [`NoHome`] if `HOME` is unset, empty or relative.
    pub fn home(&self) -> Result<PathBuf, NoHome> {
        self.absolute_path("HOME").ok_or_else(|| {
            let value = self.get("HOME").map(|value| value.to_string_lossy().into_owned());
            NoHome { value: value.map(|value| crate::sanitize::sanitize_text(&value)) }
        })
    }

    /// Returns a variable's value if it is an absolute path; the XDG rules ignore relative ones.
    pub fn absolute_path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

/// Error for a `HOME` that names no directory in which castra could keep its cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", match .value {
    Some(value) => format!("HOME is `{value}`, which is not an absolute path"),
    None => "HOME is not set".to_owned(),
})]
pub struct NoHome {
    /// Value of the variable, if it has one.
    pub value: Option<String>,
}

impl Explain for NoHome {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hint(&self) -> Option<String> {
        Some(
            "Castra keeps its cache in ~/.cache/castra. Set HOME to your home directory, or \
            XDG_CACHE_HOME to the absolute path of a directory for caches."
                .to_owned(),
        )
    }
}

/// Returns the directory against which relative paths are resolved.
///
/// # Errors
/// [`NoWorkingDirectory`].
pub fn working_directory() -> Result<PathBuf, NoWorkingDirectory> {
    std::env::current_dir().map_err(NoWorkingDirectory)
}

/// Error for a working directory that was removed or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot find the working directory")]
pub struct NoWorkingDirectory(#[source] std::io::Error);

impl Explain for NoWorkingDirectory {
    fn kind(&self) -> Kind {
        kind_of_io(&self.0)
    }

    fn hint(&self) -> Option<String> {
        let hint = match self.0.kind() {
            std::io::ErrorKind::NotFound => "It was removed. Change to another directory.",
            std::io::ErrorKind::PermissionDenied => {
                "Give yourself access to ., or work in a directory of your own."
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// Context that is passed to every operation.
#[derive(Clone)]
pub struct RuntimeContext {
    /// Environment variables.
    pub environment: Environment,
    /// The user's shared cache, `$XDG_CACHE_HOME/castra`.
    pub cache: CacheLayout,
    /// The user's files outside the cache, `$XDG_STATE_HOME/castra`; `None` if neither that
    /// variable nor `HOME` names a directory.
    pub user_state: Option<UserStateLayout>,
    /// Root directory of sockets, `$XDG_RUNTIME_DIR/castra`.
    pub runtime_root: PathBuf,
    /// Set to never use the network.
    pub offline: bool,
    /// Base URLs that are asked for a file before its own URL, in order: `CASTRA_MIRROR`, then the
    /// configuration's.
    pub mirrors: Vec<String>,
    /// The mirror in `CASTRA_MIRROR`, which is trusted wherever it is.
    pub(crate) own_mirror: Option<Uri>,
    /// Addresses that are not public and that images may come from.
    pub private_sources: PrivateSources,
    /// Receiver of every [`crate::report::Event`].
    pub reporter: Arc<dyn Reporter>,
    /// Cancellation flag, set by Ctrl-C.
    pub cancel: Cancel,
    /// Program that serves the mounts of VMs, castra's own; without one, `castra` is looked for on
    /// `PATH`.
    pub companion: Option<PathBuf>,
    /// Watch that keeps the logs of running VMs within their bounds.
    pub log_watch: Arc<LogWatch>,
}

impl RuntimeContext {
    /// Creates the context that an environment describes. `CASTRA_OFFLINE`, `CASTRA_MIRROR` and the
    /// XDG variables are honoured; relative XDG directories are ignored, as the XDG specification
    /// says.
    ///
    /// # Errors
    /// [`NoHome`] if the cache is to be in the home directory and `HOME` does not name one;
    /// [`BadVariable`] for a mirror or a list of addresses that cannot be understood.
    pub fn new(
        environment: Environment,
        reporter: Arc<dyn Reporter>,
        cancel: Cancel,
    ) -> Result<Self, EnvironmentError> {
        let own_mirror = environment.mirror()?;
        let private_sources = PrivateSources::of(&environment)?;
        let cache_home = match environment.absolute_path("XDG_CACHE_HOME") {
            Some(directory) => directory,
            None => environment.home()?.join(".cache"),
        };
        let own_state = environment.absolute_path("HOME").map(|home| home.join(".local/state"));
        let state_home = environment.absolute_path("XDG_STATE_HOME").or(own_state);
        let session = environment.absolute_path("XDG_RUNTIME_DIR");
        // The owner of the directory can replace castra's with another one.
        let is_own = |directory: &PathBuf| {
            std::fs::metadata(directory).is_ok_and(|found| trusted::check_directory(&found).is_ok())
        };
        let runtime_root = match session.filter(is_own) {
            Some(directory) => directory.join("castra"),
            // There is no login session (containers, cron, CI), it is over, as in tmux after a
            // logout, or it is another user's: use a directory of this user alone, whose owner is
            // checked on use.
            None => PathBuf::from(format!("/tmp/castra-{}", rustix::process::getuid().as_raw())),
        };
        Ok(Self {
            offline: environment.is_on("CASTRA_OFFLINE"),
            mirrors: environment.text(MIRROR).map(str::to_owned).into_iter().collect(),
            own_mirror,
            private_sources,
            cache: CacheLayout::new(cache_home.join("castra")),
            user_state: state_home.map(|home| UserStateLayout::new(home.join("castra"))),
            runtime_root,
            environment,
            reporter: Arc::new(Traced(reporter)),
            cancel,
            companion: None,
            log_watch: Arc::default(),
        })
    }
}
