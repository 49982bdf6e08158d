//! Values in a repository that would be options of QEMU, `qemu-img` or pip.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use castra_test_support::{Fake, fake_qemu_program, tool};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::attacks::snapshot::{assert_untouched, snapshot};

/// A fake home with files that a stranger wants, a project, and a record of all arguments that any
/// QEMU was given.
struct Victim {
    fake: Fake,
    arguments: PathBuf,
    honest: String,
}

impl Victim {
    fn new() -> Self {
        let mut fake = Fake::new(&["vm"]);
        let directory = fake.runtime_directory().with_file_name("programs");
        fs::create_dir(&directory).expect("a directory");
        let (program, arguments) =
            (directory.join("qemu-system-x86_64"), directory.join("arguments"));
        let script = format!(
            "#!/bin/sh\nprintf '%s\\n' \"$@\" >> {}\nexec {} \"$@\"\n",
            arguments.display(),
            fake_qemu_program().display()
        );
        fs::write(&program, script).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
        fake.set("CASTRA_QEMU", program);
        let ssh = fake.runtime_directory().with_file_name("home").join(".ssh");
        fs::create_dir(&ssh).expect("a directory");
        fs::write(ssh.join("id_ed25519"), "the private key").expect("written");
        let honest = fs::read_to_string(fake.path().join("castra.toml")).expect("a configuration");
        Self { fake, arguments, honest }
    }

    fn home(&self) -> PathBuf {
        self.fake.runtime_directory().with_file_name("home")
    }

    /// Puts these lines into the description of the image: in place of its command line if they
    /// have one, or before it if they describe another image. Returns the number of their last
    /// line.
    fn describe(&self, lines: &str) -> usize {
        let (table, command_line) = ("[images.tiny]\n", "command_line = \"console=ttyS0\"\n");
        assert!(self.honest.starts_with(&format!("{table}{command_line}")));
        let rest = &self.honest[table.len() + command_line.len()..];
        let text = if lines.starts_with('[') {
            format!("{lines}\n{}", self.honest)
        } else if lines.starts_with("command_line") {
            format!("{table}{lines}\n{rest}")
        } else {
            format!("{table}{command_line}{lines}\n{rest}")
        };
        self.fake.write("castra.toml", &text);
        text.lines().position(|line| Some(line) == lines.lines().last()).expect("the line") + 1
    }

    /// Returns all arguments that QEMU was given so far, one per line.
    fn arguments(&self) -> String {
        fs::read_to_string(&self.arguments).unwrap_or_default()
    }
}

/// Insists that every command refuses these lines of an image's description by naming the line, and
/// starts nothing.
#[track_caller]
fn assert_refused(victim: &Victim, lines: &str, says: &str) {
    let before = snapshot(&victim.home());
    let number = victim.describe(lines);
    let place = format!("castra.toml:{number}:");
    for command in [
        ["config", "check"].as_slice(),
        &["up"],
        &["up", "--cold"],
        &["run", "--image", "tiny", "--", "true"],
        &["image", "pull"],
        &["image", "import", "image/disk.qcow2"],
        &["image", "export", "tiny", "out.tar"],
    ] {
        // `run` reserves all other codes for its command.
        let code = if command[0] == "run" { 255 } else { 65 };
        let ended = victim.fake.run(command).code(code);
        let all = format!("{}{}", ended.text(), ended.stderr);
        assert!(all.contains(&place), "castra {command:?} does not name {place} of {lines}\n{all}");
        assert!(all.contains(says), "castra {command:?} does not say {says:?} of {lines}\n{all}");
    }
    assert_eq!(victim.arguments(), "", "QEMU was started for {lines}");
    assert!(!victim.fake.path().join(".castra").exists(), "something was made for {lines}");
    assert_untouched(&victim.home(), &before);
}

#[test]
fn no_device_of_a_file_reaches_the_host() {
    let victim = Victim::new();
    let home = victim.home();
    let home = home.to_str().expect("UTF-8");
    for device in [
        &format!("loader,file={home}/.ssh/id_ed25519,addr=0x20000,force-raw=on"),
        &format!("usb-mtp,rootdir={home},readonly=off"),
        &format!("usb-kbd,pcap={home}/.bash_aliases"),
        &format!("e1000,romfile={home}/.ssh/id_ed25519"),
        &format!("virtio-rng-pci,romfile={home}/.ssh/id_ed25519"),
        "guest-loader,kernel=/etc/passwd,addr=0",
        "virtio-9p-pci,fsdev=x,mount_tag=x",
        "usb-host,hostbus=1,hostaddr=1",
        "vfio-pci,host=00:02.0",
        "virtserialport,chardev=qmp",
        "isa-debugcon,chardev=qmp",
        "usb-serial,chardev=control",
        "virtio-blk-pci,drive=disk-file",
        "virtio-net-pci,netdev=net",
        "intel-hda",
        "vhost-vsock-pci,guest-cid=3",
        "help",
        "virtio-rng-pci,help",
        "virtio-rng-pci,,x",
        r#"{\"driver\":\"loader\",\"file\":\"/etc/passwd\"}"#,
    ] {
        assert_refused(&victim, &format!("devices = [\"virtio-rng-pci\", \"{device}\"]"), "error");
    }
    let evil = "devices = [\"qemu-xhci,id=usb\", \"usb-mtp,rootdir=/home,readonly=off\"]";
    assert_refused(&victim, evil, "CASTRA_UNSAFE_QEMU_ARGS");
    assert_refused(&victim, "devices = [\"virtio-rng\"]", "Did you mean `virtio-rng-pci`?");
}

#[test]
fn no_machine_or_cpu_of_a_file_reaches_the_host() {
    let victim = Victim::new();
    let home = victim.home();
    let home = home.to_str().expect("UTF-8");
    for machine in [
        &format!("q35,firmware={home}/.ssh/id_ed25519"),
        &format!("q35,kernel={home}/.ssh/id_ed25519"),
        &format!("q35,initrd={home}/.ssh/id_ed25519"),
        &format!("q35,dtb={home}/.ssh/id_ed25519"),
        &format!("q35,dumpdtb={home}/.bashrc"),
        "q35,memory-backend=x",
        "q35,accel=kvm",
        "q35,sata=off,sata=on",
        "q35,sata",
        "help",
        "q35,help",
        "none",
        "q35 -device loader",
    ] {
        assert_refused(&victim, &format!("machine = \"{machine}\""), "error");
    }
    assert_refused(&victim, "machine = \"microvm\"", "CASTRA_UNSAFE_QEMU_ARGS");
    for cpu in [
        "max,model-id=x",
        "max,host-cache-info=on",
        "help",
        "?",
        "max,+a=b",
        "max -device loader",
        "max,",
    ] {
        assert_refused(&victim, &format!("cpu = \"{cpu}\""), "CASTRA_UNSAFE_QEMU_ARGS");
    }
}

#[test]
fn no_other_value_of_an_image_is_an_option() {
    let victim = Victim::new();
    // In place of a value of the honest image, there is another image above it.
    let image = |artifact: &str| format!("[images.other]\nrootfs = {{ {artifact} }}");
    let digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
    for convert in [
        "from = \"raw,file.driver=nbd\", to = \"qcow2\"",
        "from = \"nbd\", to = \"qcow2\"",
        "from = \"raw\", to = \"qcow2,backing_file=/etc/passwd\"",
        "from = \"-U\", to = \"qcow2\"",
    ] {
        let lines = format!(
            "path = \"d\", sha256 = \"{digest}\", pipeline = [{{ convert = {{ {convert} }} }}]"
        );
        assert_refused(&victim, &image(&lines), "cannot be");
    }
    for python in [
        "package = \"--index-url=http://evil.example\", version = \"1\"",
        "package = \"-r/etc/passwd\", version = \"1\"",
        "package = \"p\", version = \"1 --pre\"",
        "package = \"p\", version = \"1\", platform = \"--no-deps\"",
        "package = \"p @ file:///etc/passwd\", version = \"1\"",
    ] {
        assert_refused(
            &victim,
            &image(&format!("python = {{ {python} }}, sha256 = \"{digest}\"")),
            "pip",
        );
    }
    for line in ["a\\nb", "a\\u0000b", "a\\tb"] {
        assert_refused(&victim, &format!("command_line = \"{line}\""), "control character");
    }
}

/// Covers a kernel that QEMU takes for multiboot: it then splits the initramfs' name at commas and
/// spaces.
#[test]
fn a_kernel_cannot_have_qemu_take_names_apart() {
    let victim = Victim::new();
    let before = snapshot(&victim.home());
    let kernel = victim.fake.path().join("image/kernel");
    let honest = Sha256::digest(fs::read(&kernel).expect("a kernel"));
    // The magic of an arm64 kernel, which castra accepts as a kernel, and a multiboot header.
    let mut content = vec![0; 0x400];
    content[0x38..0x3c].copy_from_slice(b"ARM\x64");
    for (at, word) in [(0x40, 0x1bad_b002_u32), (0x44, 0), (0x48, 0x1bad_b002_u32.wrapping_neg())] {
        content[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    fs::write(&kernel, &content).expect("written");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let text = victim.honest.replace(&hex(&honest), &hex(&Sha256::digest(&content)));
    let key = victim.home().join(".ssh/id_ed25519");
    let state = format!("[project]\nstate_dir = 'x,{} '\n", key.display());
    for more in ["", &state] {
        victim.fake.write("castra.toml", &format!("{more}{text}"));
        victim.fake.run(&["up", "--cold"]).code(65);
        assert_eq!(victim.arguments(), "", "QEMU was started");
    }
    assert_untouched(&victim.home(), &before);
}

#[test]
fn a_planted_record_adds_nothing_to_a_machine() {
    let victim = Victim::new();
    victim.fake.run(&["up", "--cold"]).ok();
    victim.fake.run(&["suspend"]).ok();
    let honest = fs::read(victim.fake.record("vm")).expect("a record");
    fs::remove_file(&victim.arguments).expect("removed");
    let before = snapshot(&victim.home());
    for (key, value) in [
        ("devices", Value::from(vec!["virtio-rng-pci", "loader,file=/etc/passwd,addr=0x20000"])),
        ("devices", Value::from(vec!["usb-mtp,rootdir=/home"])),
        ("machine", Value::from("q35,firmware=/etc/passwd")),
        ("machine", Value::from("q35,initrd=/etc/passwd")),
        ("cpu", Value::from("max,model-id=x")),
        ("cpu", Value::from("help")),
    ] {
        victim.fake.edit_record("vm", |record| {
            record["suspended"]["boot"]["machine"][key] = value.clone()
        });
        victim.fake.run(&["up"]).code(65).says("vm.json").says("--discard-suspended");
        assert_eq!(victim.arguments(), "", "QEMU was started with {value}");
        fs::write(victim.fake.record("vm"), &honest).expect("written");
    }
    assert_untouched(&victim.home(), &before);
    victim.fake.run(&["up"]).ok();
    assert_eq!(victim.fake.state("vm"), "running");
}

#[test]
fn honest_values_reach_qemu_as_they_are() {
    let victim = Victim::new();
    let _ = victim.describe(
        "machine = \"pc-q35-7.2,sata=off,hpet=off\"\ncpu = \"max,-svm,+sse4.1\"\n\
         devices = [\"virtio-rng-pci,max-bytes=1024,period=1000\", \"qemu-xhci,id=usb\", \
         \"usb-tablet,bus=usb.0\"]",
    );
    victim.fake.run(&["config", "check"]).ok();
    victim.fake.run(&["up", "--cold"]).ok();
    let arguments = victim.arguments();
    for argument in [
        "-machine\npc-q35-7.2,sata=off,hpet=off\n",
        "-cpu\nmax,-svm,+sse4.1\n",
        "-device\nvirtio-rng-pci,max-bytes=1024,period=1000\n",
        "-device\nqemu-xhci,id=usb\n",
        "-device\nusb-tablet,bus=usb.0\n",
        "-device\nvmgenid,guid=auto\n",
    ] {
        assert!(arguments.contains(argument), "{argument:?} is not in\n{arguments}");
    }
    victim.fake.run(&["suspend"]).ok();
    victim.fake.run(&["up"]).ok();
}

#[test]
fn what_else_qemu_is_given_comes_from_the_user_alone() {
    let mut victim = Victim::new();
    victim.fake.set("CASTRA_UNSAFE_QEMU_ARGS", "-device usb-host,hostbus=1 -cpu max,pdpe1gb=on");
    victim.fake.run(&["up", "--cold"]).ok();
    let arguments = victim.arguments();
    assert!(
        arguments.contains("-device\nusb-host,hostbus=1\n-cpu\nmax,pdpe1gb=on\n"),
        "{arguments}"
    );
    victim.fake.run(&["suspend"]).ok();
    // Memory that has seen other devices fits no machine without them.
    victim.fake.set("CASTRA_UNSAFE_QEMU_ARGS", "");
    fs::remove_file(&victim.arguments).expect("removed");
    victim.fake.run(&["up"]).code(65).says("other extra arguments");
    assert_eq!(victim.arguments(), "");
    victim.fake.set("CASTRA_UNSAFE_QEMU_ARGS", "-device usb-host,hostbus=1 -cpu max,pdpe1gb=on");
    victim.fake.run(&["up"]).ok();
    assert_eq!(victim.fake.state("vm"), "running");
}

#[test]
fn the_description_of_an_archive_adds_nothing_to_a_machine() {
    let victim = Victim::new();
    victim.fake.run(&["image", "export", "tiny", "honest.tar"]).ok();
    let unpacked = victim.fake.path().join("unpacked");
    fs::create_dir(&unpacked).expect("a directory");
    let (archive, evil) =
        (victim.fake.path().join("honest.tar"), victim.fake.path().join("evil.tar"));
    let (directory, archive) =
        (unpacked.to_str().expect("UTF-8"), archive.to_str().expect("UTF-8"));
    tool("tar", &["-xf", archive, "-C", directory]);
    let description = unpacked.join("castra-image.json");
    let mut text: Value =
        serde_json::from_slice(&fs::read(&description).expect("a description")).expect("is JSON");
    let profile = serde_json::json!({
        "machine": "q35,firmware=/etc/passwd", "tcg_cpu": "max,model-id=x",
        "devices": ["loader,file=/etc/passwd"],
    });
    text["profile"] = profile.clone();
    text["image"]["profile"] = profile;
    fs::write(&description, text.to_string()).expect("written");
    let blobs =
        (0..text["blobs"].as_array().expect("blobs").len()).map(|number| format!("blob-{number}"));
    let members: Vec<String> =
        std::iter::once("castra-image.json".to_owned()).chain(blobs).collect();
    let mut words = vec!["--format=ustar", "-cf", evil.to_str().expect("UTF-8"), "-C", directory];
    words.extend(members.iter().map(String::as_str));
    tool("tar", &words);
    fs::remove_dir_all(victim.fake.cache()).expect("removed");
    victim.fake.run(&["image", "import", "evil.tar"]).ok();
    victim.fake.run(&["up", "--cold"]).ok();
    let arguments = victim.arguments();
    assert!(arguments.contains("-device\nvirtio-rng-pci\n"), "{arguments}");
    assert!(!arguments.contains("/etc/passwd") && !arguments.contains("model-id"), "{arguments}");
}
