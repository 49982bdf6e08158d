//! A throw-away VM.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use super::Run;
use super::command::{Command, Settings};
use super::error::SandboxError;
use super::guest::{self, Guest, ROOT, Way};
use crate::command::Lifetime;
use crate::config::{
    self, BaseImageSource, BootProfile, Bounds, ChosenImage, ConfigOptions, DeclaredMount,
    MAX_STEPS, ManagedImageSelection, MountOrigin, ProjectConfig, ProjectPath, ProvisionStep,
    StepAction,
};
use crate::context::{RuntimeContext, working_directory};
use crate::error::Result;
use crate::files::create_private_directory;
use crate::guest::Mount;
use crate::guest::ssh::{Copied, Target};
use crate::layout::{CacheLayout, ProjectLayout, STATE_DIRECTORY};
use crate::qemu::Network;
use crate::state_root::StateRoot;
use crate::vm::{self, Plan, ProjectRef, Throwaway, UpOptions};

/// Settings of a throw-away VM, from [`Castra::sandbox`](super::Castra::sandbox) or
/// [`Project::sandbox`](super::Project::sandbox).
#[derive(Clone)]
#[must_use]
pub struct SandboxBuilder {
    context: RuntimeContext,
    /// Project whose images can be named.
    project: Option<ProjectConfig>,
    image: Option<OsString>,
    cpus: Option<u32>,
    memory_bytes: Option<u64>,
    disk_bytes: Option<u64>,
    mounts: Vec<DeclaredMount>,
    auto_forwards: bool,
    /// Scripts that prepare the disk, each kept as a layer.
    scripts: Vec<PathBuf>,
    options: UpOptions,
}

/// Defines the settings that [`SandboxBuilder`] and [`Run`] have in common.
macro_rules! machine_settings {
    ($($field:ident)?) => {
        /// Uses this image: `NAME` or `NAME@VERSION` of the catalog or of the project's
        /// `castra.toml`, or the path of a qcow2 of your own, which is never written to.
        pub fn image(mut self, name: impl Into<std::ffi::OsString>) -> Self {
            self$(.$field)?.set_image(name.into());
            self
        }

        /// Lets images of this project be named.
        #[doc(hidden)]
        pub fn images_of(mut self, project: &$crate::config::ProjectConfig) -> Self {
            self$(.$field)?.set_project(project.clone());
            self
        }

        /// Sets the number of virtual CPUs, instead of 1.
        pub fn cpus(mut self, cpus: u32) -> Self {
            self$(.$field)?.set_cpus(cpus);
            self
        }

        /// Sets the memory in MiB, instead of 1024.
        pub fn memory_mib(mut self, mib: u64) -> Self {
            self$(.$field)?.set_memory(mib.saturating_mul(1 << 20));
            self
        }

        /// Sets the maximum size of the disk in MiB, instead of 10 GiB.
        pub fn disk_mib(mut self, mib: u64) -> Self {
            self$(.$field)?.set_disk(mib.saturating_mul(1 << 20));
            self
        }

        /// Sets what the VM can reach over the network. By default this is everything that this
        /// machine can.
        pub fn network(mut self, network: $crate::qemu::Network) -> Self {
            self$(.$field)?.set_network(network);
            self
        }

        /// Prepares the disk by a script, which runs as root before the VM exists, after those that
        /// were named before and after the image's own steps. What it has done is kept for later
        /// VMs with the same scripts.
        pub fn provision(mut self, script: impl Into<std::path::PathBuf>) -> Self {
            self$(.$field)?.add_script(script.into());
            self
        }

        /// Sets the network of the scripts and of the image's steps, instead of the VM's. An
        /// isolated step stays isolated.
        pub fn provision_network(mut self, network: $crate::qemu::Network) -> Self {
            self$(.$field)?.set_provision_network(network);
            self
        }

        /// Sets the time limit of the boot, instead of one that fits the accelerator.
        pub fn boot_timeout(mut self, limit: std::time::Duration) -> Self {
            self$(.$field)?.set_boot_limit(limit);
            self
        }
    };
}
pub(super) use machine_settings;

impl SandboxBuilder {
    pub(super) fn new(context: RuntimeContext, project: Option<ProjectConfig>) -> Self {
        let options = UpOptions { lifetime: Lifetime::ThisThreads, ..UpOptions::default() };
        let (image, cpus, memory_bytes, disk_bytes) = (None, None, None, None);
        let (mounts, auto_forwards) = (Vec::new(), false);
        Self {
            context,
            project,
            image,
            cpus,
            memory_bytes,
            disk_bytes,
            mounts,
            auto_forwards,
            scripts: Vec::new(),
            options,
        }
    }

    machine_settings!();

    /// Lets the VM read and write this directory at an absolute path of its own. Every user of the
    /// VM may do there what this process may.
    pub fn mount(self, host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        self.declare(host.into(), guest.into(), false)
    }

    /// Lets the VM read this directory, as [`Self::mount`] does.
    pub fn mount_read_only(self, host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        self.declare(host.into(), guest.into(), true)
    }

    /// Forwards each TCP port on which something in the VM listens: from the same port on 127.0.0.1
    /// of this machine, or the next one that is free. Each is reported as
    /// [`Event::PortForwarded`](crate::report::Event::PortForwarded).
    pub fn forward_listeners(mut self) -> Self {
        self.auto_forwards = true;
        self
    }

    fn declare(mut self, host: PathBuf, guest: String, read_only: bool) -> Self {
        let mount = Mount { host, guest, read_only, notify: Mount::notifies() };
        self.mounts.push(DeclaredMount { mount, origin: MountOrigin::User });
        self
    }

    /// Sets the maximum size of the disk in bytes.
    #[doc(hidden)]
    pub fn disk_bytes(mut self, bytes: u64) -> Self {
        self.disk_bytes = Some(bytes);
        self
    }

    pub(super) fn set_project(&mut self, project: ProjectConfig) {
        self.project = Some(project);
    }

    pub(super) fn set_image(&mut self, name: OsString) {
        self.image = Some(name);
    }

    pub(super) fn set_cpus(&mut self, cpus: u32) {
        self.cpus = Some(cpus);
    }

    pub(super) fn set_memory(&mut self, bytes: u64) {
        self.memory_bytes = Some(bytes);
    }

    pub(super) fn set_disk(&mut self, bytes: u64) {
        self.disk_bytes = Some(bytes);
    }

    pub(super) fn set_network(&mut self, network: Network) {
        self.options.network = network;
    }

    pub(super) fn add_script(&mut self, script: PathBuf) {
        self.scripts.push(script);
    }

    pub(super) fn set_provision_network(&mut self, network: Network) {
        self.options.provision_network = Some(network);
    }

    pub(super) fn set_boot_limit(&mut self, limit: Duration) {
        self.options.boot_limit = Some(limit);
    }

    /// Returns a command for which the VM is started.
    pub fn run<I, S>(self, command: I) -> Run
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        Run::new(self, Settings::of_argv(command))
    }

    /// Starts the VM and waits until commands can run in it. The first one boots and becomes a
    /// template, from which the next ones of its shape are restored.
    ///
    /// # Errors
    /// Fails for an unknown image, or if the VM cannot be started. Nothing is left then.
    pub fn start(self) -> Result<Sandbox> {
        let (send, receive) = channel();
        let (keep, kept) = channel::<()>();
        // QEMU ends with the thread that starts it, so that a killed process leaves no VM. The
        // caller's thread may end sooner than the VM shall.
        let keeper = thread::Builder::new().name("castra-sandbox".to_owned()).spawn(move || {
            let started = self.launch();
            let is_started = started.is_ok();
            if send.send(started).is_ok() && is_started {
                // Ends when the sandbox is dropped.
                let _ = kept.recv();
            }
        });
        let keeper = keeper.map_err(SandboxError::Thread)?;
        match receive.recv() {
            Ok(started) => {
                let (vm, place, context) = started?;
                Ok(Sandbox { vm, context, _place: place, _keeper: keep })
            }
            Err(_) => match keeper.join() {
                Err(panic) => resume_unwind(panic),
                Ok(()) => unreachable!("the thread sends before it ends"),
            },
        }
    }

    fn launch(self) -> Result<(Throwaway, Place, RuntimeContext)> {
        let place = Place::of(&self.context)?;
        let bounds = |root: &Path| Arc::new(Bounds::of_cache(root, &place.layout));
        let name = vm::throwaway_name()?;
        let config = self.configuration(name, bounds, place.state_root.clone())?;
        let mut context = self.context;
        context.mirrors.extend(config.mirrors.iter().cloned());
        let plan = Plan::new(&config, &[], &config.catalog(), &BTreeMap::new())?;
        let project = ProjectRef::new(&place.layout, &context);
        let vm = vm::start_throwaway(&plan.vms[0], ROOT, project, self.options)?;
        Ok((vm, place, context))
    }

    /// Returns a project of one VM with a name, and the options of its starts.
    pub(super) fn declaring(
        self,
        name: String,
        bounds: Arc<Bounds>,
        state_root: StateRoot,
    ) -> Result<(ProjectConfig, UpOptions)> {
        let config = self.configuration(name, |_| bounds, state_root)?;
        Ok((config, UpOptions { lifetime: Lifetime::Own, ..self.options }))
    }

    /// Returns a project of one VM. A project's own file only adds the images that can be named.
    fn configuration(
        &self,
        name: String,
        bounds: impl FnOnce(&Path) -> Arc<Bounds>,
        state_root: StateRoot,
    ) -> Result<ProjectConfig> {
        let options = ConfigOptions { skip_discovery: true, ..ConfigOptions::default() };
        let mut config = config::load(&options, &working_directory()?, &self.context)?;
        let mut vm = config.vms.remove(0);
        let mut root = config.root.clone();
        vm.mounts.clone_from(&self.mounts);
        vm.auto_forwards = self.auto_forwards;
        vm.name = name;
        vm.cpus = self.cpus.unwrap_or(vm.cpus);
        vm.disk_bytes = self.disk_bytes.unwrap_or(vm.disk_bytes);
        if let Some(project) = &self.project {
            (config.images, config.mirrors) = (project.images.clone(), project.mirrors.clone());
            config.pinned.clone_from(&project.pinned);
            root.clone_from(&project.root);
        }
        // Not the image that was chosen for the VM of this directory.
        vm.base_image = BaseImageSource::Managed(ManagedImageSelection::Default);
        if let Some(image) = &self.image {
            let catalog = config.catalog();
            let images: Vec<_> = catalog.images().iter().chain(config.images.values()).collect();
            let image = ChosenImage::parse(image, &working_directory()?, images.iter().copied())?;
            let least = image.spec(images).map_or(0, |spec| spec.profile.min_memory_mib << 20);
            vm.memory_bytes = vm.memory_bytes.max(least);
            vm.boot_profile = Some(BootProfile::Managed);
            vm.base_image = image.source();
            if let (Some(project), ChosenImage::Managed { name, .. }) = (&self.project, &image) {
                vm.provision = project.image_steps.get(name).cloned().unwrap_or_default();
            }
        }
        let scripts: std::result::Result<Vec<_>, _> =
            self.scripts.iter().map(|path| script(path)).collect();
        vm.provision.extend(scripts?);
        if vm.provision.len() > MAX_STEPS {
            return Err(SandboxError::TooManySteps.into());
        }
        vm.memory_bytes = self.memory_bytes.unwrap_or(vm.memory_bytes);
        config.bounds = bounds(&root);
        vm.overlay = config.bounds.default_disk(&vm.name);
        config.state_root = state_root;
        config.vms.push(vm);
        Ok(config)
    }
}

/// Returns the step of a script that the user has named, which may be a link.
fn script(path: &Path) -> std::result::Result<ProvisionStep, SandboxError> {
    let failed = |source| SandboxError::Script { path: path.to_owned(), source };
    let real = path.canonicalize().map_err(failed)?;
    let (Some(root), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    };
    let metadata = real.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    // Files of /proc have no size, whatever they contain.
    if metadata.len() == 0 {
        return Err(failed(io::Error::other("it is empty, or a file without a size")));
    }
    let state_root = root.join(STATE_DIRECTORY);
    let path = ProjectPath { root: root.to_owned(), below: name.into(), state_root };
    Ok(StepAction::Script(path).alone())
}

/// Directory for the files of throw-away VMs.
struct Place {
    state_root: StateRoot,
    layout: ProjectLayout,
    /// Replacement for a cache that cannot be written to.
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn of(context: &RuntimeContext) -> Result<Self> {
        let state_root = StateRoot::of_runs(&context.cache);
        if create_private_directory(state_root.path()).is_ok() {
            return Ok(Self { layout: state_root.open(context)?, state_root, _temporary: None });
        }
        let directory = context.environment.temp_dir();
        let temporary = tempfile::Builder::new().prefix("castra-run-").tempdir_in(&directory);
        let failed = |source| SandboxError::Directory { path: directory, source };
        let temporary = temporary.map_err(failed)?;
        let state_root = StateRoot::of_runs(&CacheLayout::new(temporary.path().to_owned()));
        Ok(Self { layout: state_root.open(context)?, state_root, _temporary: Some(temporary) })
    }
}

/// A throw-away VM that runs, from [`SandboxBuilder::start`].
///
/// Its files are gone already; dropping it ends the VM, and so does the end of this process, in
/// whatever way it ends.
pub struct Sandbox {
    /// First, since the VM must end before its directory and its thread do.
    vm: Throwaway,
    context: RuntimeContext,
    _place: Place,
    /// Channel whose end stops the thread that QEMU's life depends on.
    _keeper: Sender<()>,
}

impl Sandbox {
    /// Returns a command to run in the VM. The first argument is the program; no shell parses the
    /// arguments.
    pub fn command<I, S>(&self, command: I) -> Command<'_>
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        Command::new(Way::Sandbox(self), Settings::of_argv(command))
    }

    /// Copies a file or directory of this machine into the VM: *into* `remote` if that is a
    /// directory, else *as* `remote`, as `scp -rp` does. A relative `remote` path starts at root's
    /// home.
    ///
    /// # Errors
    /// Fails if the VM cannot be reached, and with the first failure of an entry, after the rest
    /// was copied.
    pub fn copy_in(&self, local: impl AsRef<Path>, remote: impl AsRef<OsStr>) -> Result<Copied> {
        guest::copy_in(self, local.as_ref(), remote.as_ref())
    }

    /// Copies a file or directory of the VM to this machine, as [`Self::copy_in`] does. Nothing is
    /// written outside `local`, whatever the guest answers.
    ///
    /// # Errors
    /// Fails as [`Self::copy_in`] does.
    pub fn copy_out(&self, remote: impl AsRef<OsStr>, local: impl AsRef<Path>) -> Result<Copied> {
        guest::copy_out(self, remote.as_ref(), local.as_ref())
    }

    /// Ends the VM like a power cut. Operations on it fail from now on.
    pub fn end(&self) {
        self.vm.end();
    }
}

impl Guest for Sandbox {
    fn target(&self, user: &str) -> Result<Target> {
        Ok(Target { user: user.to_owned(), ..self.vm.target.clone() })
    }

    fn make_ready(&self) -> Result<bool> {
        Ok(false)
    }

    fn explain_silence(&self) -> Result<()> {
        Ok(self.vm.explain_silence()?)
    }

    fn context(&self) -> &RuntimeContext {
        &self.context
    }
}
