//! One real VM from an empty directory, and everything that can be done with it while it runs.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use castra_test_support::{Ended, Project, noise, tool};

const VM: &str = "alpine-minimal";
const TEN_MB: usize = 10_000_000;

#[test]
fn from_an_empty_directory_to_a_clean_power_off() {
    let project = Project::new();
    project.run(&["up"]).ok().says("ready in");
    let made: Vec<_> = fs::read_dir(project.path())
        .expect("listed")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(made, [".castra"], "nothing but the state root is made");

    exit_codes_are_the_commands_own(&project);
    bytes_pass_unchanged(&project);
    streams_are_apart(&project);
    several_commands_share_no_port(&project);
    what_is_ignored_here_is_ignored(&project);
    a_reader_that_leaves_ends_the_command(&project);
    arguments_are_what_linux_takes(&project);
    input_is_left_alone(&project);
    files_go_there_and_back(&project);
    a_terminal_has_its_size(&project);
    the_root_filesystem_fills_its_disk(&project);
    status_shows_what_runs(&project);
    the_network_is_up(&project);
    ssh_itself_can_log_in(&project);
    let port = ssh_port(&project);
    power_off_is_clean(&project);

    project.run(&["up"]).ok().says("in the cache");
    assert_eq!(ssh_port(&project), port);
    saved_configurations_still_hold(&project);
    let kept = project.run(&["exec", "--", "cat", "/root/kept"]).ok();
    assert_eq!(kept.text(), "before the power-off\n");
}

fn exit_codes_are_the_commands_own(project: &Project) {
    project.run(&["exec", "--", "true"]).code(0);
    project.run(&["exec", "--", "false"]).code(1);
    project.run(&["exec", "--", "sh", "-c", "exit 42"]).code(42);
    project.run(&["exec", "--", "sh", "-c", "kill -9 $$"]).code(137);
    project.run(&["exec", "--", "no-such-command"]).code(127);
}

fn bytes_pass_unchanged(project: &Project) {
    let bytes = noise(TEN_MB);
    let ended = project.run_with_input(&["exec", "--", "cat"], &bytes).ok();
    assert!(ended.stdout == bytes, "{} of {TEN_MB} bytes came back", ended.stdout.len());
}

fn streams_are_apart(project: &Project) {
    let ended = project.run(&["exec", "--", "sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!((ended.text().as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
    let arguments = ["exec", "--", "printf", "%s|", "two words", "$HOME", "'quoted'", "", "*"];
    assert_eq!(project.run(&arguments).ok().text(), "two words|$HOME|'quoted'||*|");
    let ended = project
        .run(&["exec", "-e", "GREETING=hello there", "--", "sh", "-c", "echo $GREETING"])
        .ok();
    assert_eq!(ended.text(), "hello there\n");
}

/// Over ports alone: SSH would answer for one that is taken.
fn several_commands_share_no_port(project: &Project) {
    project.run(&["exec", "--", "ip", "link", "set", "eth0", "down"]).ok();
    let mut slow = project.castra(&["exec", "--", "sh", "-c", "echo begun; read line"]);
    let mut slow = slow.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut begun = [0; 6];
    slow.stdout.as_mut().expect("a pipe").read_exact(&mut begun).expect("begins");
    for _ in 0..3 {
        assert_eq!(project.run(&["exec", "--", "echo", "hello"]).ok().text(), "hello\n");
    }
    drop(slow.stdin.take());
    slow.wait().expect("ends");
    project.run(&["exec", "--", "ip", "link", "set", "eth0", "up"]).ok();
}

/// As under `nohup`.
fn what_is_ignored_here_is_ignored(project: &Project) {
    let castra = project.castra(&["exec", "--", "sh", "-c", "echo begun; sleep 1; echo finished"]);
    let mut ignoring = Command::new("sh");
    ignoring.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(castra.get_program());
    ignoring.args(castra.get_args()).current_dir(project.path());
    ignoring.envs(castra.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut ignoring = ignoring.stdout(Stdio::piped()).spawn().expect("starts");
    let mut stdout = ignoring.stdout.take().expect("a pipe");
    let mut begun = [0; 6];
    stdout.read_exact(&mut begun).expect("begins");
    tool("kill", &["-HUP", &ignoring.id().to_string()]);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "finished\n");
    assert!(ignoring.wait().expect("ends").success());
}

/// Also if the command prints nothing after what could not be written.
fn a_reader_that_leaves_ends_the_command(project: &Project) {
    let script = "echo one; sleep 1; echo two; sleep 600";
    let mut castra = project.castra(&["exec", "--", "sh", "-c", script]);
    let mut castra = castra.stdout(Stdio::piped()).spawn().expect("starts");
    let mut stdout = castra.stdout.take().expect("a pipe");
    let mut one = [0; 4];
    stdout.read_exact(&mut one).expect("read");
    drop(stdout);
    assert_eq!(castra.wait().expect("ends").code(), Some(141));
}

fn arguments_are_what_linux_takes(project: &Project) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = OsStr::from_bytes;
    let mut command = project.castra(&["exec", "-e"]);
    command
        .arg(bytes(b"VALUE=\xff"))
        .args(["--", "sh", "-c", "printf '%s|' \"$1\" \"$VALUE\"", "sh"])
        .arg(bytes(b"\xfe"));
    assert_eq!(Ended::of(command).ok().stdout, b"\xfe|\xff|");
    let mut command = project.castra(&["exec", "--", "sh", "-c", "echo $#", "sh"]);
    command.args(std::iter::repeat_n("x".repeat(100_000), 15));
    assert_eq!(Ended::of(command).ok().text(), "15\n");
}

fn input_is_left_alone(project: &Project) {
    let script = "while read line; do \"$0\" exec -n -- echo \"$line\"; done";
    let command = project.castra(&[]);
    let castra = command.get_program().to_owned();
    let mut looped = Command::new("sh");
    looped.arg("-c").arg(script).arg(castra).current_dir(project.path());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => looped.env(name, value),
            None => looped.env_remove(name),
        };
    }
    let lines = project.path().join("lines");
    fs::write(&lines, "one\ntwo\nthree\n").expect("written");
    looped.stdin(fs::File::open(&lines).expect("opened"));
    assert_eq!(Ended::of(looped).ok().text(), "one\ntwo\nthree\n");
    fs::remove_file(lines).expect("removed");
    let output =
        project.run_with_input(&["--json", "exec", "-n", "--", "cat"], b"input").ok().text();
    assert!(output.contains("\"stdout\": \"\""), "{output}");
}

fn files_go_there_and_back(project: &Project) {
    let (out, back) = (project.path().join("out.bin"), project.path().join("back.bin"));
    fs::write(&out, noise(TEN_MB)).expect("written");
    project.run(&["cp", "out.bin", ":/root/there.bin"]).ok();
    let digest = |text: String| text.split_whitespace().next().map(str::to_owned);
    let there = project.run(&["exec", "--", "sha256sum", "/root/there.bin"]).ok().text();
    let here = tool("sha256sum", &[out.to_str().expect("UTF-8")]).stdout;
    assert_eq!(digest(there), digest(String::from_utf8(here).expect("text")));
    project.run(&["cp", ":/root/there.bin", "back.bin"]).ok();
    assert!(
        fs::read(&out).expect("read") == fs::read(&back).expect("read"),
        "the copy came back changed"
    );
    fs::remove_file(out).expect("removed");
    fs::remove_file(back).expect("removed");

    fs::create_dir_all(project.path().join("tree/deep")).expect("made");
    project.write("tree/deep/leaf", "leaf");
    // With the option of other tools, which changes nothing.
    project.run(&["cp", "-r", "tree", ":/root/"]).ok();
    assert_eq!(project.run(&["exec", "--", "cat", "/root/tree/deep/leaf"]).ok().text(), "leaf");
    fs::remove_dir_all(project.path().join("tree")).expect("removed");
}

fn a_terminal_has_its_size(project: &Project) {
    let pair = castra_test_support::terminal();
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&pair.1, size).expect("sized");
    let mut command = project.castra(&["exec", "-t", "--", "stty", "size"]);
    let end = || pair.1.try_clone().expect("cloned");
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("castra runs");
    drop(command);
    let (mut terminal, ours) = (fs::File::from(pair.0), pair.1);
    assert!(child.wait().expect("castra ends").success());
    drop(ours);
    let mut shown = Vec::new();
    // Reading a terminal whose other end is closed ends with EIO.
    let _ = terminal.read_to_end(&mut shown);
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("33 101"), "{shown:?}");
}

fn the_root_filesystem_fills_its_disk(project: &Project) {
    let kib =
        project.run(&["exec", "--", "sh", "-c", "df -k / | awk 'NR==2 {print $2}'"]).ok().text();
    let kib: u64 = kib.trim().parse().expect("a number");
    assert!(kib > 9 << 20, "{kib} KiB of 10 GiB");
}

fn status_shows_what_runs(project: &Project) {
    let table = project.run(&["status"]).ok().text();
    for word in [VM, "running", "127.0.0.1:", "alpine-"] {
        assert!(table.contains(word), "{word} is not in:\n{table}");
    }
}

fn the_network_is_up(project: &Project) {
    use std::io::Write;
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = server.local_addr().expect("an address").port().to_string();
    let greeter = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("accepted");
        stream.write_all(b"hello from the host\n").expect("written");
    });
    // 10.0.2.2 is the host's 127.0.0.1, as the guest sees it.
    let heard = project.run(&["exec", "--", "nc", "10.0.2.2", &port]).ok();
    assert_eq!(heard.text(), "hello from the host\n");
    greeter.join().expect("greeted");
    let resolver = project.run(&["exec", "--", "cat", "/etc/resolv.conf"]).ok().text();
    assert!(resolver.contains("nameserver"), "{resolver}");
}

/// Files of the printed configurations: one with the VM's port, and one that goes through castra.
const SSH_CONFIGS: [&str; 2] = [".castra/ssh-config", ".castra/ssh-config-proxy"];

fn ssh_itself_can_log_in(project: &Project) {
    for (name, options) in
        SSH_CONFIGS.into_iter().zip([&["ssh-config"][..], &["ssh-config", "--proxy"]])
    {
        project.write(name, &project.run(options).ok().text());
    }
    saved_configurations_still_hold(project);
}

/// Uses the configurations as an editor does, whose working directory is anywhere.
fn saved_configurations_still_hold(project: &Project) {
    for name in SSH_CONFIGS {
        let output = ssh(project, name).args([VM, "hostname"]).output().expect("ssh runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{VM}\n"), "{name}: {said}");
    }
}

/// Returns OpenSSH's client with one of the saved configurations, in the environment of `castra`,
/// which it may run.
fn ssh(project: &Project, config: &str) -> Command {
    let (mut command, castra) = (Command::new("ssh"), project.castra(&[]));
    for (name, value) in castra.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir("/").arg("-F").arg(project.path().join(config)).stdin(Stdio::null());
    command
}

fn ssh_port(project: &Project) -> u64 {
    let status = project.run(&["status", "--json"]).ok().document("status");
    status["vms"][0]["ssh_port"].as_u64().expect("it runs")
}

fn power_off_is_clean(project: &Project) {
    project.run(&["exec", "--", "sh", "-c", "echo before the power-off > /root/kept"]).ok();
    let started = Instant::now();
    let ended = project.run(&["down"]).ok().says("guest shutdown");
    assert!(started.elapsed() < Duration::from_secs(60), "the guest's limit was hit");
    assert!(
        !ended.stderr.contains("quit"),
        "the guest did not shut down by itself:\n{}",
        ended.stderr
    );
    let raw = project.path().join(".castra/check.raw");
    let overlay = project.path().join(format!(".castra/{VM}-overlay.qcow2"));
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    tool("qemu-img", &["convert", "-O", "raw", &text(&overlay), &text(&raw)]);
    let report = tool("dumpe2fs", &["-h", &text(&raw)]);
    let report = String::from_utf8_lossy(&report.stdout);
    let state = report.lines().find(|line| line.starts_with("Filesystem state:")).expect("a state");
    assert!(state.trim_end().ends_with(" clean"), "{state}");
    assert!(!report.contains("needs_recovery"), "the journal was not written back");
    tool("e2fsck", &["-fn", &text(&raw)]);
    fs::remove_file(raw).expect("removed");
}
