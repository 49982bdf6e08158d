//! The guest agent in a real VM: Alpine's image under emulation, from QEMU's start to a clean
//! power-off.

use std::error::Error;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use castra_engine::cancel::Cancel;
use castra_engine::guest::append_agent;
use castra_engine::guest::{ControlError, ControlPort};
use castra_test_support::disks::{self, Alpine};
use castra_wire::{AgentTask, GuestMessage, Personality, Secret, Stage};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use tempfile::TempDir;

/// Time for a boot to the last service, which takes 20 s alone on a machine, several times that
/// beside other tests.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

const DISK_GIB: u64 = 3;

const COMMAND_LINE: &str = "root=/dev/vda rootfstype=ext4 rootflags=rw \
    modules=ext4,virtio_blk,virtio_net console=ttyS0 ds=nocloud no_timer_check rdinit=/castra/agent";

#[test]
fn from_start_to_power_off() {
    let mut vm = Vm::start(&disks::alpine());
    let mut port = vm.attach();

    let (stages, personalised) = vm.hello(&mut port);
    assert_eq!(stages, [Stage::Initramfs], "{}", vm.console());
    assert!(!personalised);
    port.personalise(personality("castra-test")).expect("sends");
    vm.expect(&mut port, &GuestMessage::Personalised);
    vm.expect_stages(&mut port, &[Stage::Root, Stage::Ready]);

    // A host may disconnect at any time, in the middle of a line, and another may connect.
    drop(port);
    interrupted_line(&vm.control_socket());
    let mut port = vm.attach();
    let (stages, personalised) = vm.hello(&mut port);
    assert_eq!(stages[..3], [Stage::Initramfs, Stage::Root, Stage::Ready]);
    assert!(personalised);
    if stages.len() == 3 {
        vm.expect_stages(&mut port, &[Stage::Services]);
    }

    // Answers to one host's requests never reach the next, however many are still on their way.
    for _ in 0..10 {
        (0..50).for_each(|_| port.sync().expect("sends"));
        drop(port);
        port = vm.attach();
        let (stages, _) = vm.hello(&mut port);
        assert_eq!(stages.len(), 4, "{stages:?}");
    }

    // Nonsense is answered and harms nothing; a personality may be sent again.
    let mut other_name = personality("not a name");
    port.personalise(other_name.clone()).expect("sends");
    let answer = vm.next(&mut port);
    assert!(
        matches!(answer, GuestMessage::Failed { task: AgentTask::Personalise, .. }),
        "{answer:?}"
    );
    other_name.hostname = "renamed".into();
    port.personalise(other_name).expect("sends");
    vm.expect(&mut port, &GuestMessage::Personalised);

    port.power_off().expect("sends");
    vm.expect(&mut port, &GuestMessage::PoweringOff);
    vm.wait_until_off(&mut port);
    let disk = vm.raw_disk();
    assert_eq!(read_file(&disk, "/etc/hostname"), "renamed\n");
    let superblock = Superblock::read(&disk);
    assert_eq!(superblock.bytes, DISK_GIB << 30, "the root fills its disk");
    assert!(superblock.is_clean(), "{superblock:?}");
    let written_ago = since_1970().saturating_sub(superblock.written_at).as_secs();
    assert!(
        written_ago < 120,
        "the guest's clock was the host's when it wrote its last: {written_ago} s ago"
    );
}

/// A running VM in a directory of its own; both end with it.
struct Vm {
    directory: TempDir,
    qemu: Child,
    deadline: Instant,
}

impl Vm {
    fn start(image: &Alpine) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        append_agent(&image.initramfs, &path("initramfs")).expect("appends the agent");
        let overlay = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(&image.disk)
            .arg(path("overlay.qcow2"))
            .arg(format!("{DISK_GIB}G"))
            .status();
        assert!(overlay.expect("qemu-img runs").success());
        let (overlay, control, console) =
            (path("overlay.qcow2"), path("control.sock"), path("console.log"));
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "512", "-smp", "1"])
            .args([
                "-machine",
                "q35,sata=off,smbus=off,vmport=off,accel=tcg",
                "-cpu",
                "qemu64,+rdrand",
            ])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(path("initramfs"))
            .args(["-append", COMMAND_LINE, "-drive"])
            .arg(format!("if=none,id=disk,file={},format=qcow2", overlay.display()))
            .args(["-device", "virtio-blk-pci,drive=disk", "-netdev", "user,id=net"])
            .args(["-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"])
            // A clock that is wrong until the agent sets it.
            .args(["-rtc", "base=2020-01-01T00:00:00"])
            .args(["-device", "virtio-serial-pci", "-chardev"])
            .arg(format!("socket,id=control,path={},server=on,wait=off", control.display()))
            .args(["-device", "virtserialport,chardev=control,name=castra.control", "-serial"])
            .arg(format!("file:{}", console.display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        Self { directory, qemu, deadline: Instant::now() + BOOT_LIMIT }
    }

    fn control_socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn console(&self) -> String {
        let console = fs::read(self.directory.path().join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    fn attach(&self) -> ControlPort {
        let mut port = ControlPort::connect(&self.control_socket(), self.deadline, &Cancel::new())
            .expect("connects");
        port.attach().expect("attaches");
        port
    }

    /// Returns the next message, except the one that is checked in [`Self::hello`].
    fn next(&self, port: &mut ControlPort) -> GuestMessage {
        loop {
            match port.next(self.deadline) {
                Ok(GuestMessage::RootMounted { .. }) => {}
                Ok(message) => return message,
                Err(error) => panic!("{error}; the console:\n{}", self.console()),
            }
        }
    }

    fn expect(&self, port: &mut ControlPort, expected: &GuestMessage) {
        assert_eq!(&self.next(port), expected, "{}", self.console());
    }

    /// Expects the hello first: answers to an earlier host's unfinished line are not for this one.
    fn hello(&self, port: &mut ControlPort) -> (Vec<Stage>, bool) {
        let message = self.next(port);
        let GuestMessage::Hello { stages, personalised, uptime_ms, root_mounted_ms, .. } = message
        else {
            panic!("{message:?} instead of hello")
        };
        assert!(stages.is_sorted_by_key(|reached| reached.uptime_ms), "{stages:?}");
        assert!(stages.iter().all(|reached| Some(reached.uptime_ms) <= uptime_ms), "{stages:?}");
        if let Some(root) = stages.iter().find(|reached| reached.stage == Stage::Root) {
            assert!(
                root_mounted_ms.is_some_and(|mounted| mounted <= root.uptime_ms),
                "{root_mounted_ms:?}"
            );
        }
        (stages.iter().map(|reached| reached.stage).collect(), personalised)
    }

    fn expect_stages(&self, port: &mut ControlPort, expected: &[Stage]) {
        for stage in expected {
            let message = self.next(port);
            let GuestMessage::Stage(reached) = message else {
                panic!("{message:?} instead of {stage:?}")
            };
            assert_eq!(reached.stage, *stage, "{}", self.console());
        }
    }

    fn wait_until_off(&mut self, port: &mut ControlPort) {
        let end = port.next(self.deadline);
        assert!(
            matches!(end, Err(ControlError::Closed)),
            "{end:?}; the console:\n{}",
            self.console()
        );
        assert!(self.qemu.wait().expect("QEMU ends").success());
    }

    fn raw_disk(&self) -> PathBuf {
        let raw = self.directory.path().join("raw");
        let status = Command::new("qemu-img")
            .args(["convert", "-O", "raw"])
            .arg(self.directory.path().join("overlay.qcow2"))
            .arg(&raw)
            .status();
        assert!(status.expect("qemu-img runs").success());
        raw
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only if QEMU has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn personality(hostname: &str) -> Personality {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    let host_key = key.to_openssh(LineEnding::LF).expect("encodes");
    Personality {
        time_unix_ns: u64::try_from(since_1970().as_nanos()).expect("before 2554"),
        entropy: Secret::new(vec![7; 64]),
        hostname: hostname.into(),
        machine_id: "0".repeat(32),
        host_key: Secret::new(host_key.as_bytes().to_vec()),
        authorized_keys: vec![key.public_key().to_openssh().expect("encodes")],
        relays: None,
        disks: None,
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

fn interrupted_line(socket: &Path) {
    use std::io::Write as _;
    let mut socket = std::os::unix::net::UnixStream::connect(socket).expect("connects");
    socket.write_all(b"\nlogin: \n{\"type\":\"pers").expect("writes");
}

/// Fields of an ext4 superblock (`fs/ext4/ext4.h`: `struct ext4_super_block`, 1024 bytes into the
/// disk).
#[derive(Debug)]
struct Superblock {
    bytes: u64,
    written_at: Duration,
    state: u16,
    needs_recovery: bool,
}

impl Superblock {
    fn read(disk: &Path) -> Self {
        let mut raw = [0; 1024];
        fs::File::open(disk).expect("opens").read_exact_at(&mut raw, 1024).expect("reads");
        let number =
            |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(raw[0x38..0x3A], [0x53, 0xEF], "an ext4");
        let block_bytes = 1024 << number(0x18);
        Self {
            bytes: u64::from(number(0x04)) * block_bytes,
            written_at: Duration::from_secs(number(0x30).into()),
            state: u16::from_le_bytes([raw[0x3A], raw[0x3B]]),
            needs_recovery: number(0x60) & 0x4 != 0,
        }
    }

    /// Returns `true` for `EXT4_VALID_FS`, no `EXT4_ERROR_FS`, and an empty journal.
    fn is_clean(&self) -> bool {
        self.state == 1 && !self.needs_recovery
    }
}

fn read_file(disk: &Path, path: &str) -> String {
    let disk = Disk(fs::File::open(disk).expect("opens"));
    let filesystem = ext4_view::Ext4::load(Box::new(disk)).expect("an ext4");
    filesystem.read_to_string(path).expect("the file")
}

struct Disk(fs::File);

impl ext4_view::Ext4Read for Disk {
    fn read(
        &mut self,
        start_byte: u64,
        target: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.0.read_exact_at(target, start_byte)?)
    }
}
