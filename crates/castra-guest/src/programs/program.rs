//! Turns a client's command into a process to start.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use castra_wire::MALFORMED_SIGNAL;
use castra_wire::stream::Program as Kind;
use rustix::process::{Resource, getrlimit};

use super::exec::NotStarted;
use crate::users::User;

/// Search path of a session until a login shell's profile changes it; the default of Alpine and
/// Debian.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Program that the client requests.
pub(crate) enum Program {
    /// The user's shell, as a login shell.
    Shell,
    /// A command line for the user's shell.
    Line(Vec<u8>),
    /// A command and its arguments.
    Arguments(Vec<OsString>),
}

impl Program {
    /// Returns the program of this kind with the arguments of its header.
    ///
    /// # Errors
    /// The arguments are not those of such a program.
    pub(crate) fn of(kind: Kind, mut arguments: Vec<OsString>) -> Result<Self, NotStarted> {
        match (kind, arguments.len()) {
            (Kind::Arguments, 1..) => Ok(Self::Arguments(arguments)),
            (Kind::Line, 1) => Ok(Self::Line(arguments.remove(0).into_vec())),
            (Kind::Shell, 0) => Ok(Self::Shell),
            _ => Err(NotStarted::Signal(MALFORMED_SIGNAL)),
        }
    }
}

impl Program {
    /// Returns a command's arguments, of which the first is its name.
    pub(super) fn arguments(&self) -> Option<&[OsString]> {
        match self {
            Self::Arguments(arguments) => Some(arguments),
            Self::Shell | Self::Line(_) => None,
        }
    }
}

/// Variables of a process. The last value given to a name wins.
pub(crate) type Environment = BTreeMap<OsString, OsString>;

/// Returns the environment of a login, and nothing else.
pub(crate) fn environment_of(user: &User) -> Environment {
    let variables = [
        ("USER", OsStr::new(&user.name)),
        ("LOGNAME", OsStr::new(&user.name)),
        ("HOME", user.home.as_os_str()),
        ("SHELL", user.shell.as_os_str()),
        ("PATH", OsStr::new(PATH)),
    ];
    variables.map(|(name, value)| (name.into(), value.into())).into()
}

/// Program to execute.
pub(super) struct Invocation<'a> {
    /// Candidates for the program's file, of which the first that is executable counts; if there is
    /// only one, it counts as it is.
    pub(super) files: Vec<PathBuf>,
    /// Arguments, of which the first is the program's own name.
    pub(super) arguments: Vec<Cow<'a, OsStr>>,
    pub(super) environment: &'a Environment,
}

/// Returns the invocation of a command without a shell. The file has a path, or is on the search
/// path.
pub(super) fn directly<'a>(
    arguments: &'a [OsString],
    environment: &'a Environment,
) -> Invocation<'a> {
    let files = arguments.first().map(|name| files(name, environment)).unwrap_or_default();
    let arguments = arguments.iter().map(|word| word.as_os_str().into()).collect();
    Invocation { files, arguments, environment }
}

/// Returns the invocation of the shell that runs a program.
pub(super) fn by_shell<'a>(
    user: &'a User,
    program: &'a Program,
    environment: &'a Environment,
) -> Invocation<'a> {
    let shell = user.shell.as_path();
    let name = base_name(shell);
    let borrowed = |words: &[&'a OsStr]| words.iter().copied().map(Cow::Borrowed).collect();
    let (file, arguments): (_, Vec<Cow<'a, OsStr>>) = match program {
        Program::Shell => {
            // A name that begins with a dash makes it a login shell.
            let mut login = OsString::from("-");
            login.push(name);
            (shell, vec![login.into()])
        }
        Program::Line(line) => {
            (shell, borrowed(&[name, OsStr::new("-c"), OsStr::from_bytes(line)]))
        }
        Program::Arguments(words) => {
            let Runner { shell, script, first } = Runner::of(shell);
            let own = [base_name(shell), "-c".as_ref(), script.as_ref(), first.unwrap_or(name)];
            let mut arguments: Vec<_> = borrowed(&own);
            arguments.extend(words.iter().map(|word| Cow::Borrowed(word.as_os_str())));
            (shell, arguments)
        }
    };
    Invocation { files: vec![file.to_owned()], arguments, environment }
}

fn base_name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(path.as_os_str())
}

fn files(name: &OsStr, environment: &Environment) -> Vec<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        // Relative to the directory in which it starts.
        return vec![name.into()];
    }
    let Some(path) = environment.get(OsStr::new("PATH")) else { return Vec::new() };
    std::env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .collect()
}

/// Reads the directories of the search path, so that any program is found without a disk.
pub(crate) fn look_up_all(user: &User) {
    for directory in std::env::split_paths(PATH) {
        // A directory may be missing.
        let _ = std::fs::read_dir(directory).map(Iterator::count);
    }
    // The home is where programs start.
    let _ = std::fs::metadata(&user.home);
}

/// Shell that runs a command without parsing its words. The shell finds the program, knows its own
/// builtins, reads its user's `.zshenv` or `.bashrc`, and reports a command that cannot be run as
/// it does for a line.
struct Runner<'a> {
    shell: &'a Path,
    /// Script that runs its arguments, all but the first, as a command.
    script: &'static str,
    /// Argument before the command, which may begin with a dash. A POSIX shell uses it as its own
    /// name.
    first: Option<&'static OsStr>,
}

impl<'a> Runner<'a> {
    fn of(shell: &'a Path) -> Self {
        let script = match shell.file_name().and_then(OsStr::to_str) {
            Some("fish") => "$argv",
            Some("csh" | "tcsh") => "shift; $argv:q",
            // Shells in which an array of words cannot be run as a command.
            Some("elvish" | "es" | "nu" | "pwsh" | "rc" | "xonsh") => {
                return Self {
                    shell: Path::new("/bin/sh"),
                    script: "\"$@\"",
                    first: Some(OsStr::new("sh")),
                };
            }
            _ => "\"$@\"",
        };
        let first = (script == "$argv").then_some(OsStr::new("--"));
        Self { shell, script, first }
    }
}

/// Reserve for the words and variables that a shell adds before it runs a command: the command must
/// find room for these, too.
const SHELL_RESERVE_BYTES: u64 = 8 * 1024;

/// Limits of the kernel's `bprm_stack_limits`, in bytes: a quarter of the stack, within these
/// bounds.
const ARGUMENTS_AT_LEAST: u64 = 128 * 1024;
const ARGUMENTS_AT_MOST: u64 = 6 * 1024 * 1024;

/// Returns `true` if the kernel has room for a command and its variables, also if a shell starts
/// it. A single one that is too long shows only when the process is started.
pub(crate) fn has_room(arguments: &[OsString], environment: &Environment) -> bool {
    let stack = getrlimit(Resource::Stack).current.unwrap_or(u64::MAX);
    let limit = (stack / 4).clamp(ARGUMENTS_AT_LEAST, ARGUMENTS_AT_MOST);
    // Each has a pointer and a terminating NUL.
    let bytes = |text: &OsString| text.len() as u64 + 9;
    let arguments: u64 = arguments.iter().map(bytes).sum();
    let variables = environment.iter().map(|(name, value)| bytes(name) + bytes(value));
    arguments + variables.sum::<u64>() + SHELL_RESERVE_BYTES <= limit
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Output};

    use super::*;
    use crate::users::tests::own_user;

    fn run(shell: &str, arguments: &[&[u8]]) -> Output {
        let user = own_user(shell);
        let arguments =
            arguments.iter().map(|argument| OsString::from_vec(argument.to_vec())).collect();
        let (program, environment) = (Program::Arguments(arguments), environment_of(&user));
        let invocation = by_shell(&user, &program, &environment);
        let (own_name, arguments) = invocation.arguments.split_first().expect("a name");
        let mut command = Command::new(&invocation.files[0]);
        command.arg0(own_name).args(arguments).env_clear().envs(&environment);
        let output = command.output();
        output.unwrap_or_else(|error| panic!("{shell}: {error}; `cargo xtask test` installs it"))
    }

    const SHELLS: [&str; 5] =
        ["/bin/sh", "/bin/bash", "/usr/bin/zsh", "/usr/bin/fish", "/opt/bin/nu"];

    #[test]
    fn no_shell_reads_the_arguments() {
        let arguments: [&[u8]; 9] = [
            b"a b",
            b"",
            b"it's",
            b"$HOME $argv",
            b"c\\d\\\\'",
            b"new\nline",
            b"*?[a]~;&|<>(){}!",
            b"-x",
            b"\xff\xfe",
        ];
        for shell in SHELLS {
            let output = run(shell, &[&[&b"printf"[..], b"%s\\0"], &arguments[..]].concat());
            let expected: Vec<u8> =
                arguments.iter().flat_map(|one| [one, &b"\0"[..]].concat()).collect();
            assert_eq!(
                output.stdout.escape_ascii().to_string(),
                expected.escape_ascii().to_string(),
                "{shell}"
            );
        }
    }

    #[test]
    fn the_first_is_a_program_whatever_it_looks_like() {
        for shell in SHELLS {
            for word in [&b"A=b"[..], b"#", b"a | b", b"-x", b"--"] {
                let output = run(shell, &[word]);
                assert_eq!(output.status.code(), Some(127), "{shell}: {}", word.escape_ascii());
                assert!(!output.stderr.is_empty(), "{shell} says so");
            }
            assert_eq!(run(shell, &[b"/etc/passwd"]).status.code(), Some(126), "{shell}");
        }
    }

    #[test]
    fn builtins_are_found_as_before() {
        for shell in SHELLS {
            assert_eq!(run(shell, &[b"exit", b"3"]).status.code(), Some(3), "{shell}");
            let found = run(shell, &[b"command", b"-v", b"env"]).stdout;
            assert!(found.ends_with(b"/env\n"), "{shell}: {}", OsStr::from_bytes(&found).display());
        }
    }

    #[test]
    fn a_script_without_a_first_line_runs() {
        let directory = std::env::temp_dir().join(format!("castra-program-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("makes a directory");
        let script = directory.join("script");
        std::fs::write(&script, "echo ran $1\n").expect("writes");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).expect("sets a mode");
        let outputs =
            SHELLS.map(|shell| run(shell, &[script.as_os_str().as_bytes(), b"on"]).stdout);
        std::fs::remove_dir_all(&directory).expect("removes");
        assert_eq!(
            outputs.map(|output| String::from_utf8(output).expect("is text")),
            ["ran on\n"; 5]
        );
    }

    #[test]
    fn room_is_what_the_kernel_has() {
        let limit = (getrlimit(Resource::Stack).current.unwrap_or(u64::MAX) / 4)
            .clamp(ARGUMENTS_AT_LEAST, ARGUMENTS_AT_MOST);
        let argument = OsString::from("x".repeat(100_000));
        let count = usize::try_from((limit - SHELL_RESERVE_BYTES) / 100_009).expect("fits");
        let mut arguments = vec![argument.clone(); count];
        assert!(has_room(&arguments, &Environment::new()));
        let status = Command::new("/bin/true").env_clear().args(&arguments).status();
        assert!(status.expect("the kernel agrees").success());
        arguments.push(argument);
        assert!(!has_room(&arguments, &Environment::new()));
    }
}
