//! Grammar of the command line: options and their help, without any decisions.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::config::{parse_disk, parse_memory};

use super::output::Verbosity;

/// Heading of the options that go with every command.
pub(super) const FOR_ALL: &str = "Options of every command";

/// A real Linux VM with one command.
#[derive(Debug, Parser)]
#[command(name = "castra", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "In an empty directory, `castra up` is all it takes; castra.toml declares more.")]
pub(super) struct Args {
    /// Use this castra.toml (or the one in this directory)
    #[arg(long, global = true, value_name = "PATH", help_heading = FOR_ALL)]
    pub(super) config: Option<PathBuf>,
    /// Do as if there were no castra.toml
    #[arg(long, global = true, conflicts_with = "config", help_heading = FOR_ALL)]
    pub(super) skip_discovery: bool,
    /// Never use the network
    #[arg(long, global = true, help_heading = FOR_ALL)]
    pub(super) offline: bool,
    /// Print the result as JSON, and events on stderr
    #[arg(long, global = true, help_heading = FOR_ALL)]
    pub(super) json: bool,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = FOR_ALL)]
    quiet: bool,
    /// Say more: each phase of a boot, each step of an image
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
    /// Start VMs, fetching what is missing; wait until they are ready
    Up(UpArgs),
    /// Stop VMs in an orderly way
    Down(DownArgs),
    /// Save the memory of VMs and stop them; `up` goes on from there
    Suspend(SuspendArgs),
    /// Make another VM of one, with its memory and its disk
    Clone(CloneArgs),
    /// Stop VMs in an orderly way and start them again
    Restart(RestartArgs),
    /// Take over a .castra that your castra did not make
    Adopt(AdoptArgs),
    /// Remove what no VM here needs; with --disks, stopped VMs, too
    Clean(CleanArgs),
    /// Show the VMs of this project and what they do
    Status(StatusArgs),
    /// Show the VMs of all your projects
    List,
    /// Open a shell in a VM, starting it if it does not run
    #[command(visible_alias = "ssh")]
    Shell(ShellArgs),
    /// Run a command in a VM; its exit code is castra's
    Exec(ExecArgs),
    /// Run a command in a fresh VM that is thrown away
    Run(RunArgs),
    /// Talk to a VM's serial console; Ctrl-] ends it
    Console(ConsoleArgs),
    /// Copy files and directories into and out of a VM
    Cp(CpArgs),
    /// Show what a VM's console, QEMU or the image manager said
    Logs(LogsArgs),
    /// Show what a VM's last start did and how long each phase took
    Timeline(TimelineArgs),
    /// Show which ports of this machine lead into which VM
    Ports(PortsArgs),
    /// Look at managed images, fetch, check, carry and remove them
    Image(ImageArgs),
    /// Look at warm templates, from which fresh VMs go on
    Template(TemplateArgs),
    /// Try everything that VMs need here, and tell what to do about it
    Doctor(DoctorArgs),
    /// Print a configuration for ssh, scp, rsync, editors and Ansible
    SshConfig(SshConfigArgs),
    /// Join stdin and stdout with a VM's SSH server, for ssh's ProxyCommand
    #[command(hide = true)]
    SshProxy(SshProxyArgs),
    /// Check castra.toml, show what comes of it, print its schema
    Config(ConfigArgs),
    /// Print the script by which a shell completes castra's commands
    Completions(CompletionsArgs),
    /// Print the manual, or write its pages into a directory
    Man(ManArgs),
}

impl Command {
    /// Returns `true` if Ctrl-C stops the command in an orderly way from the start. `shell` and `exec`
    /// pass it to the guest, `cp` and `run` handle it once there is something to clean up, and the
    /// others have nothing to clean up.
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
    #[command(flatten)]
    pub(super) start: StartArgs,
    /// Drop the memory of a suspended VM and boot from its disk, which was written out when it was suspended
    #[arg(long)]
    pub(super) discard_suspended: bool,
}

/// How VMs are started.
#[derive(Debug, ClapArgs)]
pub(super) struct StartArgs {
    /// What to wait for
    #[arg(long, value_enum, default_value_t = Wait::Ready)]
    pub(super) wait: Wait,
    /// Return as soon as QEMU runs; the next command that needs the VM finishes the start
    #[arg(long, conflicts_with = "wait")]
    pub(super) no_wait: bool,
    /// Boot, even where a warm template would be faster; a suspended VM goes on all the same
    #[arg(long)]
    pub(super) cold: bool,
    /// How long a boot may take, in seconds [default: 300 under tcg, else 120; more on a busy machine]
    #[arg(long, value_name = "SECS", value_parser = seconds, conflicts_with = "no_wait")]
    pub(super) boot_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Wait {
    /// Commands can run inside
    Ready,
    /// The guest's own last service is up
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
    /// Do not ask the guest: as if the power went
    #[arg(long, conflicts_with = "timeout")]
    pub(super) force: bool,
    /// Drop the memory of VMs that are suspended; their disks stay
    #[arg(long)]
    pub(super) discard_suspended: bool,
    /// How long the guest may take to shut down, in seconds
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "60")]
    pub(super) timeout: Duration,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "A VM that is suspended is left as it is, unless it is named: then it is an error, or its memory is dropped by \
    --discard-suspended."
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
    after_help = "Without --disks only what nobody misses goes: logs, what killed programs left, what was moved aside as \
    damaged, and layers and images that no disk stands on. VMs that run or are suspended are never touched.\n\n\
    Examples:\n  castra clean --dry-run           shows what would go, and how much that frees\n  \
    castra down && castra clean --disks   leaves the directory as if there had never been a VM"
)]
pub(super) struct CleanArgs {
    /// VMs to clean up [default: all, and what belongs to none]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
    /// Only show what would go
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Remove VMs that are stopped: disks, records, keys
    #[arg(long)]
    pub(super) disks: bool,
    /// Move records aside that are damaged or of a newer castra; the next `up` writes new ones and keeps the disks
    #[arg(long)]
    pub(super) records: bool,
    /// End VMs that still run though their project's directory is gone, of whatever project
    #[arg(long, conflicts_with_all = ["disks", "records"])]
    pub(super) orphans: bool,
    /// Do not ask before disks are removed
    #[arg(short, long)]
    pub(super) yes: bool,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "A .castra that came with a repository or an archive, from another user or from another machine is not used \
    before you have taken it over. Its disks and records are kept as they are; its SSH keys, which others may know, are moved \
    to its quarantine, and the next boot makes new ones."
)]
pub(super) struct AdoptArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(super) yes: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SuspendArgs {
    /// VMs to suspend [default: all that run]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct CloneArgs {
    /// The VM; one that runs is suspended for the moment, so connections to it end
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
    /// Log in as this user of the guest
    #[arg(short, long, default_value = "root")]
    pub(super) user: String,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "What the command leaves running ends when it next prints: send its output elsewhere.\n\n\
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

/// A command in a guest, and how it runs there.
#[derive(Debug, ClapArgs)]
pub(super) struct GuestCommandArgs {
    /// Run as this user of the guest
    #[arg(short, long, default_value = "root")]
    pub(super) user: String,
    /// Give the command a terminal of its own
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Read no input: the command gets none, and a loop around castra keeps its own
    #[arg(short, long, conflicts_with = "tty")]
    pub(super) no_stdin: bool,
    /// Set a variable in its environment
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = OsStringValueParser::new().try_map(variable))]
    pub(super) env: Vec<(OsString, OsString)>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Nothing is kept: the VM, its disk and its keys are gone when the command has ended, or castra.\n\n\
    Examples:\n  castra run -- uname -a\n  \
    castra run --network isolated --timeout 60 --cp ./task:/task -- sh /task/run"
)]
pub(super) struct RunArgs {
    /// The image: of the catalog, or of this project's castra.toml [default: as `up` in an empty directory]
    #[arg(long, value_name = "NAME[@VERSION]")]
    pub(super) image: Option<String>,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(super) cpus: Option<u32>,
    /// Memory, for instance 512MiB [default: 1 GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(super) memory: Option<u64>,
    /// How far its disk can grow [default: 10 GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_disk)]
    pub(super) disk: Option<u64>,
    /// What the command can reach
    #[arg(long, value_enum, default_value_t = Reach::Full)]
    pub(super) network: Reach,
    /// Copy a file or directory into the VM first
    #[arg(long, value_name = "SRC:DST")]
    pub(super) cp: Vec<String>,
    /// End it after so many seconds, with exit code 124
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub(super) timeout: Option<Duration>,
    #[command(flatten)]
    pub(super) guest: GuestCommandArgs,
}

/// What a throw-away VM can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Reach {
    /// What this machine can reach
    Full,
    /// Nothing, not even this machine
    Isolated,
}

#[derive(Debug, ClapArgs)]
#[command(override_usage = "castra cp [OPTIONS] <SRC>... <DST>")]
#[command(after_help = "A path in a VM is written VM:PATH, or :PATH where there is only one VM.\n\n\
    Examples:\n  castra cp ./site :/srv/            copies the directory site into /srv\n  \
    castra cp web:/var/log/messages .  copies one file here\n  \
    castra cp ':/etc/*.conf' conf/     copies all that match\n\n\
    A path with a / before its first colon is one of this machine: ./a:b")]
pub(super) struct CpArgs {
    /// What to copy, and last where to
    #[arg(required = true, num_args = 2.., value_names = ["SRC", "DST"])]
    pub(super) paths: Vec<OsString>,
    /// Log in as this user of the guest
    #[arg(short, long, default_value = "root")]
    pub(super) user: String,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "At a terminal every key goes to the guest, but for Ctrl-]. From a pipe all bytes do, and the end comes when the \
    guest has been silent for --linger seconds after the end of the input.\n\n\
    A serial console knows no window size: `stty rows 50 cols 160` in the guest sets it."
)]
pub(super) struct ConsoleArgs {
    /// The VM [default: the only one]
    pub(super) vm: Option<String>,
    /// After the end of an input that is no terminal: how long the guest must be silent, in seconds
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "1")]
    pub(super) linger: Duration,
}

#[derive(Debug, ClapArgs)]
pub(super) struct LogsArgs {
    /// VMs whose logs to show [default: all]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
    /// Go on showing what is added
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Show the last N lines only
    #[arg(long, value_name = "N")]
    pub(super) tail: Option<usize>,
    /// Only what is newer than a span (10m, 2h, 3d) or a time (2026-11-24T10:00)
    ///
    /// Lines of castra and the image manager have times. Those of consoles and QEMU have none: such a log is shown whole if
    /// it was written to since then, and that is said if it began before.
    #[arg(long, value_name = "WHEN", value_parser = super::logs::since::parse)]
    pub(super) since: Option<jiff::Timestamp>,
    /// Whose words
    #[arg(long, value_enum, default_value_t = LogSource::Console)]
    pub(super) source: LogSource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogSource {
    /// The guest's serial console, this boot
    Console,
    /// QEMU's own messages, this boot
    Qemu,
    /// The image manager's steps
    Images,
    /// What castra did to this project's VMs
    Castra,
    /// All of these
    All,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "The last 20 starts of each VM are kept with it, those that failed too.")]
pub(super) struct TimelineArgs {
    /// The VM [default: the only one]
    pub(super) vm: Option<String>,
    /// List the starts that are kept
    #[arg(long, conflicts_with_all = ["compare", "boots"])]
    pub(super) list: bool,
    /// Put the last two starts side by side
    #[arg(long, conflicts_with = "boots")]
    pub(super) compare: bool,
    /// Put the last N starts side by side
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=20))]
    pub(super) boots: Option<u32>,
    /// Write a page for a browser that shows all kept starts and needs nothing else
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
pub(super) struct ImageArgs {
    #[command(subcommand)]
    pub(super) command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Show the images there are and whether they are here already
    List,
    /// Show what an image is made from and where its files are
    Show {
        /// The image [default version: the newest]
        #[arg(value_name = "NAME[@VERSION]")]
        image: String,
    },
    /// Fetch images: into this project what its VMs need, anything else into the cache
    ///
    /// An image of your own that has no digest yet is fetched too, so that its digest can be told and pinned.
    Pull {
        /// Images to fetch [default: what the VMs of this project need]
        #[arg(value_name = "NAME[@VERSION]")]
        images: Vec<String>,
    },
    /// Hash every file of images again; move damaged ones aside and make them again
    ///
    /// Looks at this project's copy, the cache's copy and the downloads. What is damaged goes into a quarantine/
    /// directory beside them, which `castra image prune` empties.
    Verify {
        /// Images to verify [default: all that are here]
        #[arg(value_name = "NAME[@VERSION]")]
        images: Vec<String>,
    },
    /// Put a file that an image is made from, or an archive of `export`, into the cache
    ///
    /// For machines without a network. A file is recognised by its digest: it must be pinned by an image of the catalog
    /// or of this project's castra.toml.
    Import {
        /// The file or archive
        path: PathBuf,
    },
    /// Write what an image is made from into one file, for `import` on another machine
    Export {
        /// The image [default version: the newest]
        #[arg(value_name = "NAME[@VERSION]")]
        image: String,
        /// The new file
        path: PathBuf,
    },
    /// Remove from the cache what no project needs
    ///
    /// Removed are images that no project has, downloads that no project's image is made from, what interrupted
    /// downloads left, and the quarantine. What a project has is kept with its downloads, which make it again if it is
    /// ever damaged. Projects stand by themselves: nothing of them is touched, and what a running castra works on is left
    /// alone.
    Prune {
        /// Only show what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Also remove downloads whose images are in projects; to make those again, they are fetched again
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
    /// Show the templates there are and what they take
    List,
    /// Hash every file of every template
    Verify,
    /// Remove templates that another castra or another QEMU made, and damaged ones
    ///
    /// VMs are left alone, running or not. A template that is needed again is made again, by one longer boot.
    Prune {
        /// Remove all templates
        #[arg(long)]
        all: bool,
        /// Only show what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct DoctorArgs {
    /// Fail for warnings, too
    #[arg(long)]
    pub(super) strict: bool,
    /// Mend what can be mended without losing anything
    #[arg(long)]
    pub(super) fix: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Without --proxy it holds until a VM gets another port, since its own is taken.\n\n\
                        VMs serve commands, terminals, sftp and scp; -L to ports and Unix sockets, -R to\n\
                        ports, -D, -W and -J. X11, agents (-A) and -R to Unix sockets are refused.\n\n\
                        Examples:\n  castra ssh-config > vm.ssh && sftp -F vm.ssh alpine-minimal\n  \
                        castra ssh-config --proxy >> ~/.ssh/config && ssh alpine-minimal")]
pub(super) struct SshConfigArgs {
    /// VMs to print [default: all that run; with --proxy, all]
    #[arg(value_name = "VM")]
    pub(super) vms: Vec<String>,
    /// Connect through castra, which finds a VM at any port
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
    /// Go by the project of this directory [default: the working directory]
    #[arg(long, value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    pub(super) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Look for everything that would keep castra.toml from being used
    ///
    /// Tells all problems at once, each at its line. Beside the file itself it looks at what `up` would need of this
    /// machine: disks of your own, and free ports. The network is not used. The exit code is 65 if there is an error, and
    /// 0 if there are warnings only.
    Check {
        /// The castra.toml, or its directory [default: as for every command]
        path: Option<PathBuf>,
    },
    /// Show what `up` would make of castra.toml, with all defaults, and why
    Show {
        /// The castra.toml, or its directory [default: as for every command]
        path: Option<PathBuf>,
    },
    /// Print the JSON Schema of castra.toml, for editors
    ///
    /// `castra init` names the published schema of this version in the first line of the castra.toml that it writes, as Even Better
    /// TOML, Taplo and Tombi understand it. For a copy of your own, write `#:schema PATH` there.
    Schema,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The script asks castra itself, so it knows new commands and the VMs of each project.\n\n\
    For this shell, or in its start-up file (~/.bashrc, ~/.zshrc behind compinit, ~/.config/fish/config.fish):\n  \
    source <(castra completions bash)\n  \
    source <(castra completions zsh)\n  \
    castra completions fish | source"
)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(super) shell: CompletedShell,
}

/// A shell that can be told how to complete.
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
    /// Write castra.1 and a page for each command into this directory, which is made if it is not there
    #[arg(value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("give a number of seconds between 0 and 86400".into()),
    }
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
            let words = [&b"castra"[..], command.as_bytes(), b"-e", b"A=b=\xff", b"--", b"\xfe", b""];
            let args = Args::try_parse_from(words.map(bytes)).expect("parses");
            let (Command::Exec(ExecArgs { guest, .. }) | Command::Run(RunArgs { guest, .. })) = args.command
            else {
                panic!("neither exec nor run")
            };
            assert_eq!(guest.command, [bytes(b"\xfe"), bytes(b"")]);
            assert_eq!(guest.env, [(bytes(b"A"), bytes(b"b=\xff"))]);
        }
        for bad in ["A", "=b", ""] {
            assert!(Args::try_parse_from(["castra", "exec", "-e", bad, "--", "true"]).is_err(), "{bad}");
        }
    }

    #[test]
    fn exec_takes_all_behind_the_dashes() {
        let args =
            Args::try_parse_from(["castra", "exec", "web", "--", "ls", "-la", "--", "x"]).expect("parses");
        let Command::Exec(exec) = args.command else { panic!("not exec") };
        assert_eq!(exec.vm.as_deref(), Some("web"));
        assert_eq!(exec.guest.command, ["ls", "-la", "--", "x"]);
    }
}
