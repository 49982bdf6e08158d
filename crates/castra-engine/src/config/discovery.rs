//! Finds the `castra.toml` of a command, or falls back to the default project if there is none.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Diagnostics;
use super::bounds::Bounds;
use super::chosen_image::ChosenImage;
use super::defaults;
use super::defaults::MAX_BYTES;
use super::error::ConfigError;
use super::project::{BaseImageSource, ManagedImageSelection, ProjectConfig, Proxy, VmDefinition};
use super::validate::name::project_name_of;
use super::validate::{self, Surroundings};
use crate::files::{normalise, read_regular};
use crate::layout::{CONFIG_FILE, LOCK_FILE, STATE_DIRECTORY};
use crate::managed::{LockFile, ManagedImageSpec};
use crate::trusted::is_absence;

/// Mode bit of a directory that every user may write to (`S_IWOTH` in `inode(7)`).
const WORLD_WRITABLE: u32 = 0o002;

/// Options of the command line that select the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigOptions {
    /// `--config`: a file, or a directory that contains a `castra.toml`. Relative to the working
    /// directory.
    pub explicit: Option<PathBuf>,
    /// Ignore any file; `explicit` takes precedence.
    pub skip_discovery: bool,
    /// `--image`: the image of a project without a file, instead of the one that was chosen for it
    /// before.
    pub image: Option<ChosenImage>,
}

/// Project of a command. Paths are absolute and normalised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovered {
    /// The project of this `castra.toml`.
    File(PathBuf),
    /// The default project of this directory, which has a `.castra` and no `castra.toml`.
    State(PathBuf),
    /// No file and no state: the default project of the working directory.
    Nothing,
}

impl Discovered {
    /// Returns the project's directory.
    pub fn root<'a>(&'a self, working_directory: &'a Path) -> &'a Path {
        match self {
            Self::File(file) => file.parent().unwrap_or(file),
            Self::State(root) => root,
            Self::Nothing => working_directory,
        }
    }
}

/// Finds the project of a command: `--config`, else the first directory with a `castra.toml` or a
/// `.castra` from the working directory upward to the root of the filesystem, else none.
///
/// # Errors
/// [`ConfigError`] if the named file does not exist, or the file found is not a regular file,
/// belongs to a user it should not, or cannot even be looked for. A file that is broken or
/// unreadable never counts as absent.
pub fn discover(
    options: &ConfigOptions,
    working_directory: &Path,
) -> Result<Discovered, ConfigError> {
    let working_directory = absolute(working_directory)?;
    if let Some(explicit) = &options.explicit {
        return explicit_config(&normalise(&working_directory.join(explicit)))
            .map(Discovered::File);
    }
    if options.skip_discovery {
        return Ok(Discovered::Nothing);
    }
    let mut may_have_state = true;
    for directory in working_directory.ancestors() {
        let candidate = directory.join(CONFIG_FILE);
        if let Some(metadata) = look_at(&candidate)? {
            check_owner(&candidate, &metadata, directory)?;
            return Ok(Discovered::File(candidate));
        }
        // No project extends across a directory like `/tmp`.
        may_have_state = may_have_state && !is_others_playground(directory);
        if may_have_state && has_own_state(directory) {
            return Ok(Discovered::State(directory.to_owned()));
        }
    }
    Ok(Discovered::Nothing)
}

/// Returns the file of the project that [`discover`] finds, if it has one.
///
/// # Errors
/// Those of [`discover`].
pub fn resolve_config_path(
    options: &ConfigOptions,
    working_directory: &Path,
) -> Result<Option<PathBuf>, ConfigError> {
    Ok(match discover(options, working_directory)? {
        Discovered::File(file) => Some(file),
        Discovered::State(_) | Discovered::Nothing => None,
    })
}

/// Loads the project of the selected file, or the default project if there is none.
///
/// # Errors
/// [`ConfigError`], which never causes a fallback to the defaults.
pub(super) fn load_or_default_project(
    options: &ConfigOptions,
    working_directory: &Path,
    surroundings: &Surroundings<'_>,
) -> Result<ProjectConfig, ConfigError> {
    let found = discover(options, working_directory)?;
    match &found {
        Discovered::File(file) if options.image.is_some() => {
            Err(ConfigError::ImageBesideFile { file: file.clone() })
        }
        Discovered::File(file) => {
            let pinned = pinned_beside(file)?;
            let project = surroundings.with_pinned(&pinned, |surroundings| {
                validate::parse(&read(file)?, file, surroundings)
            })?;
            Ok(ProjectConfig { pinned, ..project })
        }
        Discovered::State(_) | Discovered::Nothing => {
            let root = absolute(working_directory)?;
            default_project(found.root(&root), &options.image, surroundings.allowed_outside)
        }
    }
}

/// Returns the project of a directory without `castra.toml`: one VM on the chosen image or the
/// default one.
fn default_project(
    root: &Path,
    image: &Option<ChosenImage>,
    allowed_outside: &[PathBuf],
) -> Result<ProjectConfig, ConfigError> {
    let bounds = Arc::new(Bounds::new(root, allowed_outside));
    bounds.check_state_root().map_err(ConfigError::State)?;
    let image = match image {
        Some(image) => Some(image.clone()),
        None => ChosenImage::read(bounds.state_root().names())?,
    };
    let name = image.as_ref().map_or(defaults::IMAGE.to_owned(), ChosenImage::vm_name);
    let vm = VmDefinition {
        overlay: bounds.default_disk(&name),
        name,
        description: None,
        base_image: image
            .as_ref()
            .map_or(BaseImageSource::Managed(ManagedImageSelection::Default), ChosenImage::source),
        allow_backing_file: false,
        cpus: defaults::CPUS,
        cpu: None,
        memory_bytes: defaults::MEMORY_BYTES,
        disk_bytes: defaults::DISK_BYTES,
        data_disks: Vec::new(),
        boot_profile: None,
        firmware: None,
        cloud_init: None,
        port_forwards: Vec::new(),
        auto_forwards: false,
        mounts: Vec::new(),
        provision: Vec::new(),
        proxy: Proxy::None,
    };
    Ok(ProjectConfig {
        file: None,
        root: root.to_owned(),
        name: project_name_of(root),
        state_root: bounds.state_root(),
        bounds,
        vms: vec![vm],
        images: Default::default(),
        image_steps: Default::default(),
        pinned: Vec::new(),
        keys: Default::default(),
        mirrors: Vec::new(),
        warnings: Diagnostics::default(),
    })
}

/// Returns the builds of images that the `castra.lock` beside this file pins.
pub(super) fn pinned_beside(file: &Path) -> Result<Vec<ManagedImageSpec>, ConfigError> {
    let path = file.with_file_name(LOCK_FILE);
    if let Some(metadata) = look_at(&path)? {
        check_owner(&path, &metadata, file.parent().unwrap_or(file))?;
    }
    Ok(LockFile::read(&path)?.unwrap_or_default().images())
}

fn explicit_config(path: &Path) -> Result<PathBuf, ConfigError> {
    let found = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => path.join(CONFIG_FILE),
        _ => path.to_owned(),
    };
    match look_at(&found)? {
        Some(_) => Ok(found),
        None => Err(ConfigError::NotFound { path: found }),
    }
}

/// Returns the metadata of the file at `path`, following symbolic links; `None` if it does not
/// exist.
fn look_at(path: &Path) -> Result<Option<Metadata>, ConfigError> {
    let unreadable = |source| ConfigError::unreadable(path, source);
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
        Ok(_) => Err(ConfigError::NotAFile { path: path.to_owned() }),
        Err(error) if is_absence(&error) => match fs::symlink_metadata(path) {
            Ok(_) => Err(ConfigError::Dangling { path: path.to_owned() }),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(unreadable(error)),
        },
        Err(error) => Err(unreadable(error)),
    }
}

/// Refuses a file that another user has put into a directory like `/tmp`: its VM would receive the
/// commands meant for the default one. Root's own files are as trustworthy as the system.
fn check_owner(file: &Path, metadata: &Metadata, directory: &Path) -> Result<(), ConfigError> {
    let me = rustix::process::geteuid().as_raw();
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| ConfigError::unreadable(&path, source)
    };
    // A symbolic link makes another file, perhaps root's, the configuration: the link's owner chose
    // it.
    let of_link = fs::symlink_metadata(file).map_err(unreadable(file))?;
    let Some(owner) =
        [of_link.uid(), metadata.uid()].into_iter().find(|owner| *owner != me && *owner != 0)
    else {
        return Ok(());
    };
    let mode = fs::metadata(directory).map_err(unreadable(directory))?.mode();
    if mode & WORLD_WRITABLE == 0 {
        return Ok(());
    }
    Err(ConfigError::UntrustedOwner { path: file.to_owned(), owner })
}

/// Returns `true` for a directory of another user that every user may write to.
fn is_others_playground(directory: &Path) -> bool {
    let me = rustix::process::geteuid().as_raw();
    fs::metadata(directory)
        .is_ok_and(|metadata| metadata.uid() != me && metadata.mode() & WORLD_WRITABLE != 0)
}

/// Returns `true` for a directory whose `.castra` belongs to this user, or that belongs to this
/// user itself: there, a `.castra` owned by root was left by `sudo castra`, and is reported by the
/// commands that need it.
fn has_own_state(directory: &Path) -> bool {
    let me = rustix::process::geteuid().as_raw();
    let Ok(state) = fs::symlink_metadata(directory.join(STATE_DIRECTORY)) else { return false };
    let is_place = state.is_dir() || state.is_symlink();
    let is_own_directory = || {
        fs::metadata(directory)
            .is_ok_and(|metadata| metadata.uid() == me && metadata.mode() & WORLD_WRITABLE == 0)
    };
    is_place && (state.uid() == me || is_own_directory())
}

/// Reads the text of a file that was found.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::unreadable(path, source);
    // Since it was examined, the file may have become a FIFO, which would block.
    let bytes = read_regular(path, MAX_BYTES).map_err(unreadable)?;
    let bytes = bytes.ok_or_else(|| ConfigError::TooLarge { path: path.to_owned() })?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line_start =
            good.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        ConfigError::NotUtf8 {
            path: path.to_owned(),
            line: good.iter().filter(|byte| **byte == b'\n').count() + 1,
            column: String::from_utf8_lossy(&good[line_start..]).chars().count() + 1,
        }
    })
}

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path)
        .map(|path| normalise(&path))
        .map_err(|source| ConfigError::unreadable(path, source))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::error::{Explain as _, Kind};

    const MINIMAL: &str = "[[vms]]\nname = \"dev\"\nmanaged_image = \"alpine-minimal\"\n";
    const KNOWN: [(&str, &str); 1] = [("alpine-minimal", "v1")];

    /// Creates a directory whose ancestors contain no foreign `castra.toml`.
    fn directory() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().canonicalize().expect("its path");
        (directory, path)
    }

    fn write(path: &Path, bytes: &[u8]) {
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, bytes).expect("a file");
    }

    fn explicit(path: impl Into<PathBuf>) -> ConfigOptions {
        ConfigOptions { explicit: Some(path.into()), ..ConfigOptions::default() }
    }

    fn resolve(options: &ConfigOptions, directory: &Path) -> Option<PathBuf> {
        resolve_config_path(options, directory).expect("no error")
    }

    fn load(options: &ConfigOptions, directory: &Path) -> Result<ProjectConfig, ConfigError> {
        load_or_default_project(
            options,
            directory,
            &Surroundings { home: None, known_images: &KNOWN, allowed_outside: &[] },
        )
    }

    #[test]
    fn the_nearest_file_upward_is_taken() {
        let (_guard, root) = directory();
        let deep = root.join("a/b/c");
        fs::create_dir_all(&deep).expect("directories");
        let above = root.parent().expect("a parent");
        assert_eq!(
            resolve(&ConfigOptions::default(), &deep),
            resolve(&ConfigOptions::default(), above)
        );
        write(&root.join(CONFIG_FILE), MINIMAL.as_bytes());
        assert_eq!(resolve(&ConfigOptions::default(), &deep), Some(root.join(CONFIG_FILE)));
        write(&root.join("a/b").join(CONFIG_FILE), MINIMAL.as_bytes());
        assert_eq!(
            resolve(&ConfigOptions::default(), &deep),
            Some(root.join("a/b").join(CONFIG_FILE))
        );
        assert_eq!(resolve(&ConfigOptions::default(), &root), Some(root.join(CONFIG_FILE)));
    }

    #[test]
    fn the_nearest_project_is_taken_with_a_file_or_without() {
        let (_guard, root) = directory();
        let deep = root.join("a/b/c");
        fs::create_dir_all(&deep).expect("directories");
        write(&root.join(CONFIG_FILE), MINIMAL.as_bytes());
        let found =
            |directory: &Path| discover(&ConfigOptions::default(), directory).expect("no error");
        assert_eq!(found(&deep), Discovered::File(root.join(CONFIG_FILE)));
        // A file with this name is no state.
        fs::write(root.join("a/b").join(STATE_DIRECTORY), "").expect("a file");
        assert_eq!(found(&deep), Discovered::File(root.join(CONFIG_FILE)));
        fs::create_dir(root.join("a").join(STATE_DIRECTORY)).expect("a directory");
        assert_eq!(found(&deep), Discovered::State(root.join("a")));
        assert_eq!(
            load(&ConfigOptions::default(), &deep).expect("the default").root,
            root.join("a")
        );
        write(&root.join("a").join(CONFIG_FILE), MINIMAL.as_bytes());
        assert_eq!(found(&deep), Discovered::File(root.join("a").join(CONFIG_FILE)));
    }

    #[test]
    fn discovery_can_be_skipped_and_a_named_file_wins() {
        let (_guard, root) = directory();
        write(&root.join(CONFIG_FILE), MINIMAL.as_bytes());
        let skip = ConfigOptions { skip_discovery: true, ..ConfigOptions::default() };
        assert_eq!(resolve(&skip, &root), None);
        assert_eq!(load(&skip, &root).expect("the default").file, None);
        let both =
            ConfigOptions { explicit: Some(CONFIG_FILE.into()), skip_discovery: true, image: None };
        assert_eq!(resolve(&both, &root), Some(root.join(CONFIG_FILE)));
    }

    #[test]
    fn a_named_file_is_relative_to_the_working_directory() {
        let (_guard, root) = directory();
        write(&root.join("other/my.toml"), MINIMAL.as_bytes());
        write(&root.join("other").join(CONFIG_FILE), MINIMAL.as_bytes());
        fs::create_dir(root.join("here")).expect("a directory");
        let here = root.join("here");
        assert_eq!(
            resolve(&explicit("../other/./my.toml"), &here),
            Some(root.join("other/my.toml"))
        );
        assert_eq!(
            resolve(&explicit("../other"), &here),
            Some(root.join("other").join(CONFIG_FILE))
        );
        let project = load(&explicit("../other/my.toml"), &here).expect("a project");
        assert_eq!(project.root, root.join("other"));
        assert_eq!(project.state_root.path(), root.join("other/.castra"));
    }

    #[test]
    fn a_named_file_that_is_not_there_is_an_error() {
        let (_guard, root) = directory();
        fs::create_dir(root.join("empty")).expect("a directory");
        for (named, missing) in
            [("no.toml", "no.toml"), ("empty", "empty/castra.toml"), ("no/where", "no/where")]
        {
            let error = resolve_config_path(&explicit(named), &root).expect_err(named);
            assert_eq!(error.kind(), Kind::NotFound);
            assert!(error.to_string().ends_with(missing), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn a_symbolic_link_is_followed_and_its_own_directory_counts() {
        let (_guard, root) = directory();
        write(&root.join("shared/common.toml"), MINIMAL.as_bytes());
        fs::create_dir(root.join("project")).expect("a directory");
        symlink("../shared/common.toml", root.join("project").join(CONFIG_FILE)).expect("a link");
        let project = load(&ConfigOptions::default(), &root.join("project")).expect("a project");
        assert_eq!(project.root, root.join("project"));
    }

    #[test]
    fn a_broken_file_never_counts_as_absent() {
        let (_guard, root) = directory();
        write(&root.join(CONFIG_FILE), MINIMAL.as_bytes());
        let below = |name: &str| root.join(name);
        fs::create_dir_all(below("directory").join(CONFIG_FILE)).expect("a directory");
        let error = load(&ConfigOptions::default(), &below("directory")).expect_err("a directory");
        assert!(matches!(error, ConfigError::NotAFile { .. }), "{error}");

        fs::create_dir(below("dangling")).expect("a directory");
        symlink("nowhere", below("dangling").join(CONFIG_FILE)).expect("a link");
        let error =
            load(&ConfigOptions::default(), &below("dangling")).expect_err("a dangling link");
        assert!(matches!(error, ConfigError::Dangling { .. }), "{error}");
        assert_eq!(error.kind(), Kind::NotFound);

        write(&below("broken").join(CONFIG_FILE), b"[[vms]");
        let error = load(&ConfigOptions::default(), &below("broken")).expect_err("no TOML");
        assert!(matches!(error, ConfigError::Invalid(_)), "{error}");
        assert_eq!(error.kind(), Kind::Data);
    }

    #[test]
    fn an_unreadable_file_is_a_permission_error() {
        let (_guard, root) = directory();
        let file = root.join(CONFIG_FILE);
        write(&file, MINIMAL.as_bytes());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("permissions");
        match load(&ConfigOptions::default(), &root) {
            Err(error) => assert_eq!(error.kind(), Kind::Permission),
            Ok(_) => {
                assert!(rustix::process::geteuid().is_root(), "only root reads it all the same")
            }
        }
    }

    #[test]
    fn another_users_file_in_a_directory_open_to_all_is_refused() {
        let (_guard, root) = directory();
        let file = root.join(CONFIG_FILE);
        write(&file, MINIMAL.as_bytes());
        if !rustix::process::geteuid().is_root() {
            castra_test_support::skip("only root can give a file away");
            return;
        }
        std::os::unix::fs::chown(&file, Some(12345), None).expect("a new owner");
        assert!(
            load(&ConfigOptions::default(), &root).is_ok(),
            "no other user can have put it here"
        );
        fs::set_permissions(&root, fs::Permissions::from_mode(0o1777)).expect("permissions");
        let error = load(&ConfigOptions::default(), &root).expect_err("planted");
        assert!(matches!(error, ConfigError::UntrustedOwner { owner: 12345, .. }), "{error}");
        assert!(load(&explicit(CONFIG_FILE), &root).is_ok(), "named, it is trusted");
    }

    #[test]
    fn what_is_no_text_is_refused_where_it_stops_being_text() {
        let (_guard, root) = directory();
        write(&root.join(CONFIG_FILE), b"version = \"1\"\n# caf\xe9\n");
        let error = load(&ConfigOptions::default(), &root).expect_err("Latin-1");
        assert!(matches!(error, ConfigError::NotUtf8 { line: 2, column: 6, .. }), "{error}");
        write(&root.join(CONFIG_FILE), b"\xff\xfe[\0[\0");
        let error = load(&ConfigOptions::default(), &root).expect_err("UTF-16");
        assert!(matches!(error, ConfigError::NotUtf8 { line: 1, column: 1, .. }), "{error}");
    }

    #[test]
    fn a_byte_order_mark_is_no_problem() {
        let (_guard, root) = directory();
        write(&root.join(CONFIG_FILE), format!("\u{feff}{MINIMAL}").as_bytes());
        assert!(load(&ConfigOptions::default(), &root).is_ok());
    }

    #[test]
    fn a_file_of_a_mebibyte_is_the_largest() {
        let (_guard, root) = directory();
        let mut text = format!("{MINIMAL}#").into_bytes();
        text.resize(MAX_BYTES as usize, b'x');
        write(&root.join(CONFIG_FILE), &text);
        assert!(load(&ConfigOptions::default(), &root).is_ok());
        text.push(b'x');
        write(&root.join(CONFIG_FILE), &text);
        let error = load(&ConfigOptions::default(), &root).expect_err("too large");
        assert!(matches!(error, ConfigError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn a_directory_without_a_file_has_the_default_project() {
        let (_guard, root) = directory();
        let here = root.join("my project\n");
        fs::create_dir(&here).expect("a directory");
        let skip = ConfigOptions { skip_discovery: true, ..ConfigOptions::default() };
        let project = load(&skip, &here).expect("the default");
        assert_eq!((project.name.as_str(), project.file), ("my project-", None));
        assert_eq!(project.root, here);
        let [vm] = &project.vms[..] else { panic!("one VM") };
        assert_eq!(vm.name, "alpine-minimal");
        assert_eq!(vm.base_image, BaseImageSource::Managed(ManagedImageSelection::Default));
        assert_eq!(*vm.overlay, here.join(".castra/alpine-minimal-overlay.qcow2"));
    }
}
