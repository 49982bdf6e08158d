//! Real shells that read the scripts of `castra completions` and complete with them.

use std::process::{Command, Stdio};

use castra_test_support::{Project, castra_program, tool};

const TWO_VMS: &str = "[[vms]]\nname = \"web\"\nmanaged_image = \"alpine-minimal\"\n\n\
    [[vms]]\nname = \"wiki\"\nmanaged_image = \"mine\"\n\n\
    [images.mine]\ndescription = \"our own\"\n\
    rootfs = { path = \"d.qcow2\", sha256 = \
    \"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\" }\n";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Returns all shells for which there are completions; `cargo xtask test` installs them.
fn shells() -> [Shell; 3] {
    for name in ["bash", "zsh", "fish"] {
        tool(name, &["-c", "exit"]);
    }
    [Shell::Bash, Shell::Zsh, Shell::Fish]
}

/// Returns the shell's candidates for the last of these words, in which Tab is pressed. Insists on
/// an empty stderr.
fn complete(project: &Project, shell: Shell, words: &[&str]) -> Vec<String> {
    let (program, arguments, script) = match shell {
        Shell::Bash => ("bash", vec!["--norc", "--noprofile"], bash(words)),
        Shell::Zsh => ("zsh", vec!["-f"], zsh(words)),
        Shell::Fish => (
            "fish",
            vec!["--no-config"],
            format!("castra completions fish | source; complete -C '{}'", words.join(" ")),
        ),
    };
    let castra = castra_program();
    let castra = castra.parent().expect("a directory");
    let path = format!("{}:{}", castra.display(), std::env::var("PATH").expect("a PATH"));
    let settings = project.castra(&[]);
    let mut command = Command::new(program);
    command.args(arguments).args(["-c", &script]).current_dir(project.path()).stdin(Stdio::null());
    for (name, value) in settings.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.env("PATH", path).output().expect("the shell runs");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(stderr, "", "{shell:?} {words:?}");
    stdout.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()
}

fn bash(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let (number, last) = (words.len() - 1, words.last().expect("a word"));
    format!(
        "source <(castra completions bash); complete -p castra >/dev/null || exit 1
         COMP_WORDS=({}); COMP_CWORD={number}; COMP_TYPE=9
         _clap_complete_castra castra '{last}' ''; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" ")
    )
}

/// Runs zsh with stand-ins for the two functions of its completion system that only an interactive
/// zsh has.
fn zsh(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    format!(
        "compdef() {{ registered=$2 }}
         _describe() {{ print -rl -- \"${{(@P)3}}\" }}
         source <(castra completions zsh); [[ $registered == castra ]] || exit 1
         words=({}); CURRENT={}; _clap_dynamic_completer_castra",
        quoted.join(" "),
        words.len()
    )
}

/// Returns the candidates without their descriptions.
fn names(shell: Shell, lines: &[String]) -> Vec<String> {
    let name = |line: &String| match shell {
        Shell::Bash => line.clone(),
        Shell::Zsh => {
            line.replace("\\:", "\u{0}").split(':').next().unwrap_or_default().replace('\u{0}', ":")
        }
        Shell::Fish => line.split('\t').next().unwrap_or_default().to_owned(),
    };
    lines.iter().map(name).collect()
}

#[test]
fn names_of_vms_complete_and_options_do_not_bury_them() {
    let project = Project::isolated();
    project.write("castra.toml", TWO_VMS);
    for shell in shells() {
        let complete = |words: &[&str]| names(shell, &complete(&project, shell, words));
        for command in [
            "up",
            "down",
            "shell",
            "exec",
            "status",
            "suspend",
            "clone",
            "logs",
            "ports",
            "ssh-config",
        ] {
            assert_eq!(complete(&["castra", command, "w"]), ["web", "wiki"], "{shell:?} {command}");
            assert_eq!(complete(&["castra", command, ""]), ["web", "wiki"], "{shell:?} {command}");
        }
        assert_eq!(complete(&["castra", "up", "web", "wi"]), ["wiki"], "{shell:?}");
        assert!(complete(&["castra", "cp", "we"]).contains(&"web:".to_owned()), "{shell:?}");
        assert_eq!(complete(&["castra", "image", "pull", "mi"]), ["mine"], "{shell:?}");
        assert_eq!(complete(&["castra", "image", "ver"]), ["verify"], "{shell:?}");
        assert_eq!(complete(&["castra", "sus"]), ["suspend"], "{shell:?}");
        assert_eq!(complete(&["castra", "up", "--no"]), ["--no-wait"], "{shell:?}");
        assert_eq!(complete(&["castra", "up", "--wait", "s"]), ["services"], "{shell:?}");
        assert_eq!(complete(&["castra", "exec", "web", "--", "u"]), [""; 0], "{shell:?}");
    }
}

#[test]
fn descriptions_come_along_where_the_shell_shows_them() {
    let project = Project::isolated();
    project.write("castra.toml", TWO_VMS);
    for shell in shells().into_iter().filter(|shell| *shell != Shell::Bash) {
        let lines = complete(&project, shell, &["castra", "up", "web"]);
        assert!(lines[0].ends_with("not created"), "{lines:?}");
        let lines = complete(&project, shell, &["castra", "image", "show", "mine"]);
        assert!(lines[0].ends_with("our own"), "{lines:?}");
    }
}

#[test]
fn another_configuration_is_heeded_and_a_broken_one_is_no_trouble() {
    let project = Project::isolated();
    project.write("castra.toml", "this is not TOML");
    project.write("other.toml", TWO_VMS);
    for shell in shells() {
        let complete = |words: &[&str]| names(shell, &complete(&project, shell, words));
        assert_eq!(
            complete(&["castra", "--config", "other.toml", "up", "we"]),
            ["web"],
            "{shell:?}"
        );
        assert_eq!(complete(&["castra", "--config=other.toml", "up", "we"]), ["web"], "{shell:?}");
        assert_eq!(complete(&["castra", "up", "we"]), [""; 0], "{shell:?}");
        assert_eq!(
            complete(&["castra", "--skip-discovery", "up", "al"]),
            ["alpine-minimal"],
            "{shell:?}"
        );
    }
}

#[test]
fn a_clone_that_is_only_recorded_completes() {
    let project = Project::isolated();
    std::fs::create_dir_all(project.path().join(".castra/vms/copied")).expect("a directory");
    // An unreadable record still has a name.
    project.write(".castra/vms/copied/vm.json", "{}");
    project.adopt();
    for shell in shells() {
        assert_eq!(
            names(shell, &complete(&project, shell, &["castra", "down", "co"])),
            ["copied"],
            "{shell:?}"
        );
    }
}

#[test]
fn an_unknown_shell_is_refused() {
    Project::isolated()
        .run(&["completions", "tcsh"])
        .code(64)
        .says("possible values: bash, zsh, fish");
}
