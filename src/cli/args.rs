//! Grammar of the command line: options and their help, without any decisions.

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use castra_engine::config::{parse_disk, parse_memory};
use castra_engine::error::Kind;
use castra_engine::qemu::DiskName;
use castra_serve::Listen;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use super::exit;
use super::mount::MountWord;
use super::output::Verbosity;
use super::port::PortWord;

/// Longest time that an option takes, in seconds: a day.
const MAX_SECS: f64 = 86_400.0;

/// Heading of the options that go with every command.
pub(super) const FOR_ALL: &str = "Global options";

/// A real Linux VM with one command.
#[derive(Debug, Parser)]
#[command(name = "castra", version, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "In an empty directory, `castra up` is all you need; castra.toml declares more."
)]
pub(super) struct Args {
    /// Use this castra.toml (or the one in this directory)
    #[arg(long, global = true, value_name = "PATH", help_heading = FOR_ALL)]
    pub(super) config: Option<PathBuf>,
    /// Ignore castra.toml
    #[arg(long, global = true, conflicts_with = "config", help_heading = FOR_ALL)]
    pub(super) skip_discovery: bool,
    /// Never use the network
    #[arg(long, global = true, help_heading = FOR_ALL)]
    pub(super) offline: bool,
    /// Print the result as JSON, with events on stderr
    #[arg(long, global = true, help_heading = FOR_ALL)]
    pub(super) json: bool,
    /// Print only errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = FOR_ALL)]
    quiet: bool,
    /// Print more: each phase of a boot, each step of an image
    #[arg(short, long, global = true, help_heading = FOR_ALL)]
    verbose: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Args {
    pub(super) fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, true) => Verbosity::Verbose,
            (false, false) => Verbosity::Normal,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Write a commented castra.toml to start from
    Init(InitArgs),
    /// Start VMs, fetch what is missing and wait until they are ready
    Up(UpArgs),
    /// Shut down VMs gracefully
    Down(DownArgs),
    /// Save the VMs' memory and stop them; `up` resumes them
    Suspend(SuspendArgs),
    /// Clone a VM, memory and disk included
    Clone(CloneArgs),
    /// Shut down VMs gracefully and start them again
    Restart(RestartArgs),
    /// Take over a .castra that your castra did not create
    Adopt(AdoptArgs),
    /// Remove what no VM here needs; with --disks, stopped VMs too
    Clean(CleanArgs),
    /// Show this project's VMs and their states
    Status(StatusArgs),
    /// Show the VMs of all your projects
    List,
    /// Open a shell in a VM, starting it if necessary
    #[command(visible_alias = "ssh")]
    Shell(ShellArgs),
    /// Run a command in a VM; its exit code is castra's
    Exec(ExecArgs),
    /// Run a command in a fresh, throwaway VM
    Run(RunArgs),
    /// Serve sandboxes to programs, by the E2B API
    Serve(ServeArgs),
    /// Serve sandboxes to a coding agent, as tools by MCP
    Mcp(McpArgs),
    /// Mount directories of this machine in a running VM
    Mount(MountArgs),
    /// Unmount directories of this machine in a running VM
    Umount(UmountArgs),
    /// Grow the disk of a VM, which may be running
    Resize(ResizeArgs),
    /// Forward ports of this machine to a running VM
    Port(PortArgs),
    /// Open a service of a VM in a browser
    Open(OpenArgs),
    /// Connect to a VM's serial console; Ctrl-] disconnects
    Console(ConsoleArgs),
    /// Copy files and directories into and out of a VM
    Cp(CpArgs),
    /// Show the logs of a VM's console, QEMU or the image manager
    Logs(LogsArgs),
    /// Show the phases of a VM's last start and how long each took
    Timeline(TimelineArgs),
    /// Show which of this machine's ports are forwarded to which VM
    Ports(PortsArgs),
    /// List, fetch, verify, transfer and remove images
    Image(ImageArgs),
    /// Manage warm templates, the snapshots new VMs start from
    Template(TemplateArgs),
    /// Check whether this machine can run VMs, and suggest fixes
    Doctor(DoctorArgs),
    /// Print an SSH config for ssh, scp, rsync, editors and Ansible
    SshConfig(SshConfigArgs),
    /// Connect stdin and stdout to a VM's SSH server, for ssh's ProxyCommand
    #[command(hide = true)]
    SshProxy(SshProxyArgs),
    /// Serve the mounts and ports of a VM, which castra starts by itself
    #[command(hide = true)]
    Companion(CompanionArgs),
    /// Check castra.toml, show what it resolves to, print its schema
    Config(ConfigArgs),
    /// Print a shell completion script
    Completions(CompletionsArgs),
    /// Print the manual, or write its pages to a directory
    Man(ManArgs),
}

impl Command {
    /// Returns the exit code of a failure of the command. `exec` and `run` have one of their own
    /// for what is no mistake of their user's, since the others may be the guest command's.
    pub(super) fn code_of_failure(&self, kind: Kind) -> ExitCode {
        match (self, kind) {
            (Self::Exec(_) | Self::Run(_), Kind::HostNotCapable) => ExitCode::from(exit::UNREACHED),
            _ => exit::of_kind(kind),
        }
    }

    /// Returns `true` if Ctrl-C stops the command in an orderly way from the start. `shell` and
    /// `exec` pass it to the guest, `cp` and `run` handle it once there is something to clean up,
    /// and the others have nothing to clean up.
    pub(super) fn heeds_interrupts(&self) -> bool {
        !matches!(
            self,
            Self::Shell(_)
                | Self::Exec(_)
                | Self::Run(_)
                | Self::Cp(_)
                | Self::Console(_)
                | Self::SshProxy(_)
        )
    }
}

#[derive(Debug, ClapArgs)]
pub(super) struct InitArgs {}

#[derive(Debug, ClapArgs)]
pub(super) struct UpArgs {
    /// VMs to start [default: all]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
    /// The image of this directory's VM, from the catalog or a qcow2 of your own; for directories
    /// without a castra.toml, and kept for later commands
    #[arg(long, value_name = "NAME[@VERSION]|FILE", conflicts_with = "vms")]
    pub(super) image: Option<OsString>,
    #[command(flatten)]
    pub(super) start: StartArgs,
    /// Mount a directory of this machine in the VMs, until they stop; may be repeated
    #[arg(
        long,
        value_name = "HOST:GUEST[:ro]",
        conflicts_with = "no_wait",
        value_parser = OsStringValueParser::new().try_map(super::mount::parse),
    )]
    pub(super) mount: Vec<MountWord>,
    /// Forward whatever listens in the VMs, until they stop
    #[arg(long, value_enum, conflicts_with = "no_wait")]
    pub(super) ports: Option<PortsToForward>,
    #[command(flatten)]
    pub(super) consent: ConsentArgs,
    /// Drop the memory of a suspended VM and boot from its disk, which was synced when it was
    /// suspended
    #[arg(long)]
    pub(super) discard_suspended: bool,
}

/// Ports of this machine that lead to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PortsToForward {
    /// One for each TCP port on which something in the VM listens
    Auto,
}

/// Consents to what a castra.toml asks for.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(super) struct ConsentArgs {
    /// Allow the mounts of castra.toml, now and later, without asking
    #[arg(long)]
    pub(super) allow_mounts: bool,
    /// Allow the secrets of castra.toml's steps, now and later, without asking
    #[arg(long)]
    pub(super) allow_secrets: bool,
}

/// How VMs are started.
#[derive(Debug, ClapArgs)]
pub(super) struct StartArgs {
    /// What to wait for
    #[arg(long, value_enum, default_value_t = Wait::Ready)]
    pub(super) wait: Wait,
    /// Return as soon as QEMU is running; the next command that needs the VM finishes the start
    #[arg(long, conflicts_with = "wait")]
    pub(super) no_wait: bool,
    /// Boot without a warm template; suspended VMs are still resumed
    #[arg(long)]
    pub(super) cold: bool,
    /// Boot timeout in seconds [default: 300 under tcg, else 120; more on a busy machine]
    #[arg(long, value_name = "SECS", value_parser = time_limit, conflicts_with = "no_wait")]
    pub(super) boot_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Wait {
    /// Commands can run in the guest
    Ready,
    /// The guest's last service has started
    Services,
}

#[derive(Debug, ClapArgs)]
pub(super) struct DownArgs {
    /// VMs to stop [default: all]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
    #[command(flatten)]
    pub(super) stop: StopArgs,
}

/// How VMs are stopped.
#[derive(Debug, ClapArgs)]
pub(super) struct StopArgs {
    /// Stop at once without asking the guest, like a power cut
    #[arg(long, conflicts_with = "timeout")]
    pub(super) force: bool,
    /// Drop the memory of suspended VMs; their disks are kept
    #[arg(long)]
    pub(super) discard_suspended: bool,
    /// Seconds the guest may take to shut down
    #[arg(long, value_name = "SECS", value_parser = time_limit, default_value = "60")]
    pub(super) timeout: Duration,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Suspended VMs are left alone. Naming one is an error, unless --discard-suspended \
        drops its memory."
)]
pub(super) struct RestartArgs {
    /// VMs to restart [default: all]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
    #[command(flatten)]
    pub(super) stop: StopArgs,
    #[command(flatten)]
    pub(super) start: StartArgs,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Without --disks, removes only what no VM needs: logs, leftovers of killed \
        processes, quarantined files, and layers and images that no disk is based on. Running and \
        suspended VMs are never touched.\n\n\
        Examples:\n  castra clean --dry-run           shows what would be removed and freed\n  \
        castra down && castra clean --disks   leaves the directory as if there had never been a VM"
)]
pub(super) struct CleanArgs {
    /// VMs to clean up [default: all, and files that belong to none]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
    /// Only show what would be removed
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Remove stopped VMs: disks, records, keys. Data disks (`disks` in castra.toml) stay
    #[arg(long)]
    pub(super) disks: bool,
    /// Remove this data disk of stopped VMs; may be given several times
    #[arg(long, value_name = "NAME", value_parser = disk_name, conflicts_with = "data_disks")]
    pub(super) data_disk: Vec<DiskName>,
    /// Remove all data disks of stopped VMs
    #[arg(long)]
    pub(super) data_disks: bool,
    /// Quarantine records that are damaged or written by a newer castra; the next `up` writes new
    /// ones and keeps the disks
    #[arg(long)]
    pub(super) records: bool,
    /// Stop running VMs of any project whose directory is gone
    #[arg(long, conflicts_with_all = ["disks", "data_disk", "data_disks", "records"])]
    pub(super) orphans: bool,
    /// Do not ask before removing disks
    #[arg(short, long)]
    pub(super) yes: bool,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "A .castra that came with a repository or an archive, from another user or from \
        another machine is not used until you adopt it. Its disks and records are kept as they \
        are; its SSH keys, which others may know, are quarantined, and the next boot makes new \
        ones."
)]
pub(super) struct AdoptArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(super) yes: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SuspendArgs {
    /// VMs to suspend [default: all running ones]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct CloneArgs {
    /// The VM; a running one is briefly suspended, which closes its connections
    pub(super) vm: String,
    /// The new VM's name
    pub(super) new: String,
}

#[derive(Debug, ClapArgs)]
pub(super) struct StatusArgs {
    /// VMs to show [default: all]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ShellArgs {
    /// The VM [default: the only one]
    pub(super) vm: Option<String>,
    /// Open it in a machine that is thrown away, on the disk as this step of the VM's `provision`
    /// finds it; the number after the last step is for the disk after all steps
    #[arg(long, value_name = "N", value_parser = step_number)]
    pub(super) at_step: Option<usize>,
    /// Log in as this user of the guest
    #[arg(short, long, default_value = "root")]
    pub(super) user: String,
    #[command(flatten)]
    pub(super) start_in: WorkdirArgs,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Background processes of the command end when they next print: redirect their \
        output.\n\n\
        Examples:\n  castra exec web -- tar -C /srv -c . > site.tar\n  \
        castra exec -- sh -c 'nohup server > /var/log/server 2>&1 &'\n  \
        while read file; do castra exec -n -- rm \"$file\"; done < list"
)]
pub(super) struct ExecArgs {
    /// The VM [default: the only one]
    pub(super) vm: Option<String>,
    #[command(flatten)]
    pub(super) guest: GuestCommandArgs,
}

/// Directory in which a command starts.
#[derive(Debug, ClapArgs)]
pub(super) struct WorkdirArgs {
    /// Start in this directory of the VM [default: where a mount shows the working directory, else
    /// the user's home]
    #[arg(
        short,
        long,
        value_name = "DIR",
        value_parser = OsStringValueParser::new().try_map(directory),
    )]
    pub(super) workdir: Option<OsString>,
}

/// A command in a guest, and how it runs there.
#[derive(Debug, ClapArgs)]
pub(super) struct GuestCommandArgs {
    /// Run as this user of the guest
    #[arg(short, long, default_value = "root")]
    pub(super) user: String,
    #[command(flatten)]
    pub(super) start_in: WorkdirArgs,
    /// Allocate a terminal for the command
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Do not read stdin: the command gets no input, and a loop around castra keeps its own
    #[arg(short, long, conflicts_with = "tty")]
    pub(super) no_stdin: bool,
    /// Set a variable in the command's environment
    #[arg(
        short,
        long,
        value_name = "NAME=VALUE",
        value_parser = OsStringValueParser::new().try_map(variable),
    )]
    pub(super) env: Vec<(OsString, OsString)>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Nothing is kept: the VM, its disk and its keys are removed when the command or \
        castra ends.\n\n\
        Examples:\n  castra run -- uname -a\n  \
        castra run --network isolated --timeout 60 --cp ./task:/task -- sh /task/run\n  \
        castra run --provision setup.sh -- make test"
)]
pub(super) struct RunArgs {
    /// The image, from the catalog or this project's castra.toml, or a qcow2 of your own [default:
    /// as `up` in an empty directory]
    #[arg(long, value_name = "NAME[@VERSION]|FILE")]
    pub(super) image: Option<OsString>,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub(super) cpus: Option<u32>,
    /// Memory, for instance 512MiB [default: 1 GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(super) memory: Option<u64>,
    /// Maximum size of its disk [default: 10 GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_disk)]
    pub(super) disk: Option<u64>,
    /// Network access of the VM
    #[arg(long, value_enum, default_value_t = Reach::Full)]
    pub(super) network: Reach,
    /// Prepare the disk by this script, which runs once for all runs with it; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(super) provision: Vec<PathBuf>,
    /// Network access of the scripts [default: as the VM]
    #[arg(long, value_enum, value_name = "NETWORK", requires = "provision")]
    pub(super) provision_network: Option<Reach>,
    /// Mount a directory of this machine in the VM; may be repeated
    #[arg(
        long,
        value_name = "HOST:GUEST[:ro]",
        value_parser = OsStringValueParser::new().try_map(super::mount::parse),
    )]
    pub(super) mount: Vec<MountWord>,
    /// Forward whatever listens in the VM
    #[arg(long, value_enum)]
    pub(super) ports: Option<PortsToForward>,
    /// Copy a file or directory into the VM first
    #[arg(long, value_name = "SRC:DST")]
    pub(super) cp: Vec<String>,
    /// Stop it after this many seconds, with exit code 124
    #[arg(long, value_name = "SECS", value_parser = time_limit)]
    pub(super) timeout: Option<Duration>,
    #[command(flatten)]
    pub(super) guest: GuestCommandArgs,
}

/// What a throw-away VM can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Reach {
    /// Everything this machine can reach
    Full,
    /// Nothing, not even this machine
    Isolated,
}

#[derive(Debug, ClapArgs)]
#[command(override_usage = "castra cp [OPTIONS] <SRC>... <DST>")]
#[command(
    after_help = "A path in a VM is written VM:PATH, or :PATH where there is only one VM.\n\n\
    Examples:\n  castra cp ./site :/srv/            copies the directory site into /srv\n  \
    castra cp web:/var/log/messages .  copies one file here\n  \
    castra cp ':/etc/*.conf' conf/     copies all that match\n\n\
    A path with a / before its first colon is a local path: ./a:b"
)]
pub(super) struct CpArgs {
    /// Sources, then the destination
    #[arg(required = true, num_args = 2.., value_names = ["SRC", "DST"])]
    pub(super) paths: Vec<OsString>,
    /// Accepted for those who are used to it: directories are always copied whole
    #[arg(short = 'r', long = "recursive", hide = true)]
    _recursive: bool,
    /// Log in as this user of the guest
    #[arg(short, long, default_value = "root")]
    pub(super) user: String,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "At a terminal, every key but Ctrl-] goes to the guest. From a pipe, all bytes \
        do, and castra disconnects once the guest has been silent for --linger seconds after the \
        end of the input.\n\n\
        A serial console has no window size: set it in the guest with `stty rows 50 cols 160`."
)]
pub(super) struct ConsoleArgs {
    /// The VM [default: the only one]
    pub(super) vm: Option<String>,
    /// Seconds of silence after which to disconnect, once piped input has ended; 0 does not wait
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "1")]
    pub(super) linger: Duration,
}

#[derive(Debug, ClapArgs)]
pub(super) struct LogsArgs {
    /// VMs whose logs to show [default: all]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
    /// Keep printing new lines as they are written
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Show the last N lines only; with 0 and --follow, only new ones
    #[arg(long, value_name = "N", value_parser = lines)]
    pub(super) tail: Option<usize>,
    /// Show only lines newer than a span (10m, 2h, 3d) or a time (2026-11-24T10:00)
    ///
    /// Lines of castra and the image manager have timestamps. Those of consoles and QEMU have none:
    /// such a log is shown in full if it was written to since then, with a warning if it contains
    /// older lines.
    #[arg(long, value_name = "WHEN", value_parser = super::logs::since::parse)]
    pub(super) since: Option<jiff::Timestamp>,
    /// Which log to show
    #[arg(long, value_enum, default_value_t = LogSource::Console)]
    pub(super) source: LogSource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogSource {
    /// The guest's serial console, current boot
    Console,
    /// QEMU's messages, current boot
    Qemu,
    /// The image manager's steps
    Images,
    /// Castra's operations on this project's VMs
    Castra,
    /// All of these
    All,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "The last 20 starts of each VM are kept, including failed ones.")]
pub(super) struct TimelineArgs {
    /// The VM [default: the only one]
    pub(super) vm: Option<String>,
    /// List the recorded starts
    #[arg(long, conflicts_with_all = ["compare", "boots"])]
    pub(super) list: bool,
    /// Show the last two starts side by side
    #[arg(long, conflicts_with = "boots")]
    pub(super) compare: bool,
    /// Show the last N starts side by side
    #[arg(long, value_name = "N", value_parser = starts)]
    pub(super) boots: Option<u32>,
    /// Write a self-contained HTML page of all recorded starts
    #[arg(long, value_name = "FILE", conflicts_with_all = ["list", "compare", "boots"])]
    pub(super) html: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct PortsArgs {
    /// VMs to show [default: all]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Without PORT: of the ports that lead to the VM, the likeliest one of a web \
        server. The address is printed, too. $BROWSER names another browser."
)]
pub(super) struct OpenArgs {
    /// The VM [default: the only one]
    pub(super) vm: Option<String>,
    /// TCP port in the VM, or the one of this machine that leads there
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct PortArgs {
    #[command(subcommand)]
    pub(super) command: PortCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum PortCommand {
    /// Forward ports of 127.0.0.1 to a running VM
    #[command(after_help = "A port leads to the VM until that stops or `castra port rm`; \
            `port_forwards` in castra.toml is for every start.\n\n\
            Examples:\n  castra port add web 8080:80  127.0.0.1:8080 leads to port 80 of the VM\n  \
            castra port add web 3000     the same port on both sides\n  \
            castra port add web 9000-9010:9000-9010")]
    Add {
        /// The VM
        vm: String,
        /// TCP ports of this machine and of the VM
        #[arg(required = true, value_name = "HOST[:GUEST]", value_parser = super::port::parse)]
        ports: Vec<PortWord>,
    },
    /// Close ports that were added to a running VM
    Rm {
        /// The VM
        vm: String,
        /// TCP ports of this machine, perhaps with those of the VM
        #[arg(required = true, value_name = "HOST[:GUEST]", value_parser = super::port::parse)]
        ports: Vec<PortWord>,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    pub(super) command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// List the images that are here, are of this project, or are used by default
    List {
        /// List all images of the catalog, too
        #[arg(long)]
        available: bool,
    },
    /// Show the sources of an image and where its files are
    Show {
        /// The image [default version: the newest]
        #[arg(value_name = "NAME[@VERSION]")]
        image: String,
    },
    /// Fetch images: those this project needs into the project, others into the cache
    ///
    /// An image of your own without a digest is fetched too, to print the digest to pin.
    Pull {
        /// Images to fetch [default: those this project's VMs need]
        #[arg(value_name = "NAME[@VERSION]")]
        images: Vec<String>,
    },
    /// Pin the newest builds of distributions' images in castra.lock
    ///
    /// Asks the publisher of each image for its newest build, and writes its addresses and digest
    /// into castra.lock beside castra.toml. Commit that file: new VMs then get the same build
    /// everywhere. VMs that exist keep theirs, and an image that castra.toml names with a version
    /// keeps that. If anything fails, nothing is changed.
    Update {
        /// Images to update [default: those of this project's VMs, and all that are pinned]
        #[arg(value_name = "NAME")]
        images: Vec<String>,
    },
    /// Hash all files of images again; quarantine and rebuild damaged ones
    ///
    /// Checks this project's copy, the cache's copy and the downloads. Damaged files are moved to a
    /// quarantine/ directory beside them, which `castra image prune` empties.
    Verify {
        /// Images to verify [default: all that are here]
        #[arg(value_name = "NAME[@VERSION]")]
        images: Vec<String>,
    },
    /// Add a source file of an image, or an archive from `export`, to the cache
    ///
    /// For machines without a network. A file is recognized by its digest, which an image of the
    /// catalog or of this project's castra.toml must pin.
    Import {
        /// The file or archive
        path: PathBuf,
    },
    /// Write the sources of an image to one file, for `import` on another machine
    Export {
        /// The image [default version: the newest]
        #[arg(value_name = "NAME[@VERSION]")]
        image: String,
        /// The new file
        path: PathBuf,
    },
    /// Remove what no project needs from the cache
    ///
    /// Removes images that no project uses, downloads that no project's image is made from,
    /// leftovers of interrupted downloads, and the quarantine. Images that a project uses are kept
    /// with their downloads, so that they can be rebuilt if they are damaged. Projects are
    /// self-contained and never touched; files in use by a running castra are left alone.
    Prune {
        /// Only show what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Also remove downloads whose images are in projects; rebuilding those images then fetches
        /// them again
        #[arg(long)]
        downloads: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct TemplateArgs {
    #[command(subcommand)]
    pub(super) command: TemplateCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum TemplateCommand {
    /// List templates and layers of provisioned disks, with their sizes
    List,
    /// Verify the digest of every file of templates and layers
    Verify,
    /// Remove damaged templates and those made by another castra or QEMU
    ///
    /// Damaged layers of provisioned disks and what is based on them go, too. VMs are not affected,
    /// running or not. A template or a layer that is needed again is rebuilt, in one longer boot.
    Prune {
        /// Remove all templates and layers
        #[arg(long)]
        all: bool,
        /// Only show what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct DoctorArgs {
    /// Fail on warnings too
    #[arg(long)]
    pub(super) strict: bool,
    /// Fix what can be fixed without losing data
    #[arg(long)]
    pub(super) fix: bool,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Without --proxy, it is valid until a VM gets another port because its own is \
        taken.\n\n\
        VMs support commands, terminals, sftp and scp; agents (-A), -L to ports and Unix \
        sockets, -R to ports, -D, -W and -J. X11 and -R to Unix sockets are refused.\n\n\
        Examples:\n  \
        castra ssh-config > vm.ssh && sftp -F vm.ssh alpine-minimal\n  \
        castra ssh-config --proxy >> ~/.ssh/config && ssh alpine-minimal"
)]
pub(super) struct SshConfigArgs {
    /// VMs to print [default: all running ones; with --proxy, all]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
    /// Connect through castra, which finds the VM whatever its port
    #[arg(long)]
    pub(super) proxy: bool,
    /// Log in as this user of the guest
    #[arg(short, long, default_value = "root")]
    pub(super) user: String,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "`castra ssh-config --proxy` writes the configuration that uses this.")]
pub(super) struct SshProxyArgs {
    /// The VM [default: the only one]
    pub(super) vm: Option<String>,
    /// Use the project of this directory [default: the working directory]
    #[arg(long, value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "The VM sees the directory until it stops or `castra umount`; `mounts` in \
        castra.toml is for every start. Every user of the VM may do there what you may.\n\n\
        Examples:\n  castra mount web .:/src        read and write this directory as /src\n  \
        castra mount web ~/data:/data:ro  only read")]
pub(super) struct MountArgs {
    /// The VM
    pub(super) vm: String,
    /// Directories of this machine and their places in the VM
    #[arg(
        required = true,
        value_name = "HOST:GUEST[:ro]",
        value_parser = OsStringValueParser::new().try_map(super::mount::parse),
    )]
    pub(super) mounts: Vec<MountWord>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct UmountArgs {
    /// The VM
    pub(super) vm: String,
    /// Places in the VM
    #[arg(required = true, value_name = "GUEST")]
    pub(super) guests: Vec<String>,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The E2B SDKs, unmodified, work with the variables that it prints. Sandboxes \
        outlive the server, up to their own time: the next one finds them again.\n\nExamples:\n  \
        castra serve --memory 1GiB --memory-budget 16GiB\n  \
        castra serve --listen unix:/run/user/1000/sandboxes"
)]
pub(super) struct ServeArgs {
    /// Address to listen at, or unix:PATH; port 0 is any that is free
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:7300",
        value_parser = super::serve::parse_listen,
    )]
    pub(super) listen: Listen,
    /// Directory of the sandboxes and the token [default: castra/serve in the user's state]
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// Most sandboxes that run at once
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) max_vms: usize,
    /// VMs to keep ready, paused, for new sandboxes, of each kind that clients make
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) pool: usize,
    #[command(flatten)]
    pub(super) sandboxes: SandboxesArgs,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "A client starts it by itself, and speaks with it by stdin and stdout. In the \
        configuration of most clients:\n  \
        {\"mcpServers\": {\"castra\": {\"command\": \"castra\", \"args\": [\"mcp\"]}}}\n\n\
        When the client ends, sandboxes that run are paused; the next server lists them.\n\n\
        Examples:\n  castra mcp --network full --memory 1GiB\n  \
        castra mcp --template debian-13"
)]
pub(super) struct McpArgs {
    /// Network access of the sandboxes
    #[arg(long, value_enum, default_value_t = Reach::Isolated)]
    pub(super) network: Reach,
    /// Template of sandboxes for which the client names none [default: base]
    #[arg(long, value_name = "NAME")]
    pub(super) template: Option<String>,
    /// Directory of the sandboxes [default: the first in castra/mcp of the user's state that no
    /// other server has]
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// Most sandboxes that run at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(super) max_vms: usize,
    #[command(flatten)]
    pub(super) sandboxes: SandboxesArgs,
}

/// Machine of each sandbox, and limits of all.
#[derive(Debug, ClapArgs)]
pub(super) struct SandboxesArgs {
    /// Most memory of all sandboxes that run [default: three quarters of this machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(super) memory_budget: Option<u64>,
    /// Virtual CPUs of each sandbox
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) cpus: u32,
    /// Memory of each sandbox
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = parse_memory)]
    pub(super) memory: u64,
    /// Size up to which each sandbox's disk can grow
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = parse_disk)]
    pub(super) disk: u64,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "In a running VM, the root filesystem grows with the disk; otherwise, at the \
        next start. A disk never shrinks. Resume a suspended VM first: its memory fits no other \
        disk.\n\nExample:\n  castra resize web \"20 GiB\""
)]
pub(super) struct ResizeArgs {
    /// The VM
    pub(super) vm: String,
    /// Size up to which the disk can grow, such as 20GiB
    #[arg(value_name = "SIZE", value_parser = parse_disk)]
    pub(super) size: u64,
}

#[derive(Debug, ClapArgs)]
pub(super) struct CompanionArgs {
    /// Directory of the VM's sockets
    pub(super) sockets: PathBuf,
    /// Number of its stream ports
    pub(super) ports: u32,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    pub(super) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Find everything that is wrong with castra.toml
    ///
    /// Reports all problems at once, each with its line. Besides the file itself, it checks what
    /// `up` needs on this machine: disks of your own, and free ports. The network is not used. The
    /// exit code is 65 if there is an error, and 0 if there are only warnings.
    Check {
        /// The castra.toml, or its directory [default: as for every command]
        path: Option<PathBuf>,
    },
    /// Show the configuration `up` would use, with all defaults and their reasons
    Show {
        /// The castra.toml, or its directory [default: as for every command]
        path: Option<PathBuf>,
    },
    /// Print the JSON Schema of castra.toml, for editors
    ///
    /// The first line of a castra.toml written by `castra init` names the published schema of this
    /// version, in the form that Even Better TOML, Taplo and Tombi understand. For a copy of your
    /// own, write `#:schema PATH` there.
    Schema,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The script queries castra itself, so it knows new commands and each project's \
        VMs.\n\n\
        For this shell, or in its start-up file (~/.bashrc, ~/.zshrc behind compinit, \
        ~/.config/fish/config.fish):\n  \
        source <(castra completions bash)\n  \
        source <(castra completions zsh)\n  \
        castra completions fish | source"
)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(super) shell: CompletedShell,
}

/// A shell that has a completion script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  castra man | man -l -                reads castra(1)\n  \
    castra man ~/.local/share/man/man1   installs all pages: `man castra-up`")]
pub(super) struct ManArgs {
    /// Write castra.1 and a page for each command to this directory, creating it if necessary
    #[arg(value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
}

/// Parses a number of seconds, which may be zero.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=MAX_SECS).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("give a number of seconds between 0 and {MAX_SECS}")),
    }
}

/// Parses a time limit in seconds. Nothing is done in no time, so zero is a mistake.
fn time_limit(text: &str) -> Result<Duration, String> {
    seconds(text)
        .ok()
        .filter(|limit| !limit.is_zero())
        .ok_or_else(|| format!("give a number of seconds above 0, at most {MAX_SECS}"))
}

/// Parses the name of a data disk.
fn disk_name(text: &str) -> Result<DiskName, String> {
    DiskName::try_from(text.to_owned()).map_err(|error| error.to_string())
}

/// Parses the number of virtual CPUs.
fn cpus(text: &str) -> Result<u32, String> {
    number(text, 1..=255)
}

/// Parses the number of a step, or that after the last one. A VM has at most 32 steps.
fn step_number(text: &str) -> Result<usize, String> {
    number(text, 1..=33).map(|number| number as usize)
}

/// Parses the number of starts to compare: all that are kept at most.
fn starts(text: &str) -> Result<u32, String> {
    number(text, 2..=20)
}

fn number(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("give a number from {} to {}", range.start(), range.end()))
}

fn lines(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "give a number of lines")
}

fn directory(text: OsString) -> Result<OsString, &'static str> {
    if text.is_empty() { Err("give a path in the VM") } else { Ok(text) }
}

fn variable(text: OsString) -> Result<(OsString, OsString), &'static str> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(end @ 1..) => {
            let part = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
            Ok((part(&bytes[..end]), part(&bytes[end + 1..])))
        }
        _ => Err("write NAME=VALUE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn commands_and_variables_are_bytes() {
        let bytes = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        for command in ["exec", "run"] {
            let words =
                [&b"castra"[..], command.as_bytes(), b"-e", b"A=b=\xff", b"--", b"\xfe", b""];
            let args = Args::try_parse_from(words.map(bytes)).expect("parses");
            let (Command::Exec(ExecArgs { guest, .. }) | Command::Run(RunArgs { guest, .. })) =
                args.command
            else {
                panic!("neither exec nor run")
            };
            assert_eq!(guest.command, [bytes(b"\xfe"), bytes(b"")]);
            assert_eq!(guest.env, [(bytes(b"A"), bytes(b"b=\xff"))]);
        }
        for bad in ["A", "=b", ""] {
            assert!(
                Args::try_parse_from(["castra", "exec", "-e", bad, "--", "true"]).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn exec_takes_all_behind_the_dashes() {
        let args = Args::try_parse_from(["castra", "exec", "web", "--", "ls", "-la", "--", "x"])
            .expect("parses");
        let Command::Exec(exec) = args.command else { panic!("not exec") };
        assert_eq!(exec.vm.as_deref(), Some("web"));
        assert_eq!(exec.guest.command, ["ls", "-la", "--", "x"]);
    }
}
