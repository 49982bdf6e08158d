//! Real systems on real disks, as `cargo xtask disks` builds them of a distribution's packages.
//!
//! A few are in every run, all of them in that of `cargo xtask ci --full`.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use castra_test_support::http::{Reply, Server};
use castra_test_support::{Project, disks, eventually_in_guest, noise, skip, tool};

/// Time for the greeting of a server that systemd has started.
const GREETING_LIMIT: Duration = Duration::from_secs(60);
/// Seconds by which a guest's clock may be off, beside other tests.
const CLOCK_SECS: u64 = 60;
/// Size of the disks, and the least of it that a grown root has.
const DISK: &str = "3 GiB";
const GROWN_MIB: u32 = 2700;

/// Growth of the root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// By the agent.
    Whole,
    /// By the command that a warning names: the root is on a logical volume.
    ByHand,
}

#[test]
fn bookworm_on_ext4() {
    live("bookworm-ext4", Growth::Whole);
}

#[test]
fn trixie_on_xfs_with_dracut_boots_and_is_usable() {
    let Some(disk) = disks::real("trixie-xfs") else { return };
    let life = Life::on(&disk);
    life.project.run(&["up", "--cold", "one"]).ok();
    life.is_usable(Growth::Whole);
    life.is_suspended_and_resumed();
}

#[test]
fn alpine_with_its_kernel_on_the_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = disks::with_own_kernel(&disks::alpine(), directory.path());
    live_on(&disk, Growth::Whole);
}

#[test]
fn bookworm_boots_natively_by_a_bios() {
    boots_natively("bookworm-bios", "bios");
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn trixie_boots_natively_by_uefi() {
    boots_natively("trixie-uefi", "uefi");
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn trixie_on_xfs_with_dracut() {
    live("trixie-xfs", Growth::Whole);
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn trixie_on_a_subvolume_of_btrfs() {
    live("trixie-btrfs", Growth::Whole);
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn trixie_with_a_unified_kernel_image() {
    live("trixie-uki", Growth::Whole);
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn bookworm_on_a_logical_volume() {
    live("bookworm-lvm", Growth::ByHand);
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn bookworm_in_an_mbr_with_a_separate_boot() {
    live("bookworm-mbr-boot", Growth::Whole);
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn bookworm_with_cloud_init_that_has_no_data() {
    live("bookworm-cloud-init", Growth::Whole);
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn bookworm_without_a_kernel_is_refused() {
    let Some(disk) = disks::real("bookworm-no-kernel") else { return };
    let life = Life::on(&disk);
    life.project.run(&["up", "one"]).code(65).says("ext4 with Debian").says("no kernel");
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn a_kernel_that_apt_installs_in_bookworm_boots_next() {
    boots_an_installed_kernel("bookworm-ext4");
}

#[test]
#[ignore = "`cargo xtask ci --full` runs it"]
fn a_kernel_that_apt_installs_in_trixie_boots_next() {
    boots_an_installed_kernel("trixie-xfs");
}

/// Returns the name of the server of this machine's packages, which a machine resolves that can
/// build the disks.
fn package_server() -> String {
    let sites = tool("apt-get", &["indextargets", "--format", "$(SITE)"]).stdout;
    let sites = String::from_utf8(sites).expect("UTF-8");
    let server = sites.lines().find_map(|site| site.split_once("://")?.1.split(['/', ':']).next());
    server.expect("a server").to_owned()
}

fn live(name: &str, growth: Growth) {
    if let Some(disk) = disks::real(name) {
        live_on(&disk, growth);
    }
}

/// Leads VMs of a disk through everything that a user does with them.
fn live_on(disk: &Path, growth: Growth) {
    let life = Life::on(disk);
    // From a warm template, which an earlier run may have made.
    life.project.run(&["up", "one"]).ok();
    life.is_usable(growth);
    life.is_suspended_and_resumed();
    life.has_a_second_vm_and_a_clone();
    life.starts_cold_again();
}

/// Leads a VM through what is possible without an agent, over the system's own SSH server.
fn boots_natively(name: &str, firmware: &str) {
    let Some(disk) = disks::real(name) else { return };
    let mounts = "mounts = [{ host = \".\", guest = \"/src\", read_only = true }]\n";
    let life = Life::with(&disk, &format!("boot_profile = \"native\"\n{mounts}"));
    let up = life.project.run(&["up", "one"]).ok();
    assert_eq!(up.stderr.matches("cannot have mounts: it boots natively").count(), 1);
    let status = life.project.run(&["status", "one", "--json"]).ok().document("status");
    assert_eq!(status["vms"][0]["native"]["firmware"], firmware);
    assert_eq!(life.sh("one", "cat /proc/1/comm"), "systemd\n");
    let exec = life.project.run(&["exec", "-w", "/etc", "one", "--", "sh", "-c", "pwd; exit 7"]);
    let exec = exec.code(7);
    assert_eq!((exec.text().as_str(), exec.stderr.contains("mount")), ("/etc\n", false));
    let printed = life.project.run(&["exec", "one", "--", "printf", "%s.", "a b", "$c", "'"]);
    assert_eq!(printed.ok().text(), "a b.$c.'.");
    life.copies_both_ways();
    life.runs_without_a_failed_unit();
    // As after a suspend of a day.
    life.sh("one", "date -s @$(($(date +%s) - 86400)) > /dev/null");
    life.is_suspended_and_resumed();
    let clock: u64 = life.sh("one", "date +%s").trim().parse().expect("seconds");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(clock.abs_diff(now) < CLOCK_SECS, "{clock} in the guest, {now} here");
    // An error if the guest does not react to its power button.
    life.project.run(&["down", "one"]).ok();
}

/// VMs `one`, whose sshd is behind a port of this machine, and `two`.
struct Life {
    project: Project,
    sshd_port: u16,
}

impl Life {
    fn on(disk: &Path) -> Self {
        Self::with(disk, "")
    }

    /// Returns VMs with further lines in their definitions.
    fn with(disk: &Path, more: &str) -> Self {
        let project = Project::new();
        fs::copy(disk, project.path().join("own.qcow2")).expect("copied");
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let sshd_port = listener.local_addr().expect("an address").port();
        let vm = |name: &str| {
            format!(
                "[[vms]]\nname = \"{name}\"\nbase_image = \"own.qcow2\"\nmemory = \"512 MiB\"\n\
                disk = \"{DISK}\"\n{more}"
            )
        };
        let forward = format!("port_forwards = [{{ host = {sshd_port}, guest = 22 }}]\n");
        project.write("castra.toml", &(vm("one") + &forward + &vm("two")));
        Self { project, sshd_port }
    }

    #[track_caller]
    fn sh(&self, vm: &str, script: &str) -> String {
        self.project.run(&["exec", vm, "--", "sh", "-c", script]).ok().text()
    }

    fn has_systemd(&self) -> bool {
        self.sh("one", "command -v systemctl || true").contains("systemctl")
    }

    #[track_caller]
    fn is_usable(&self, growth: Growth) {
        if growth == Growth::ByHand {
            let said = self.sh("one", "dmesg | grep -o '`pvresize.*` in the VM'");
            self.sh("one", said.trim().trim_start_matches('`').trim_end_matches("` in the VM"));
        }
        let grown = self.sh("one", "df -Pm / | awk 'END { print $2 }'");
        let mib: u32 = grown.trim().parse().expect("a number");
        assert!(mib > GROWN_MIB, "the root has {mib} MiB");
        // The agent fixes addresses in the initramfs.
        assert_eq!(self.sh("one", "cat /proc/sys/kernel/randomize_va_space"), "2\n");
        self.copies_both_ways();
        self.reaches_names_and_this_machine();
        self.runs_without_a_failed_unit();
    }

    #[track_caller]
    fn copies_both_ways(&self) {
        let (there, back) = (self.project.path().join("there"), self.project.path().join("back"));
        fs::write(&there, noise(3 << 20)).expect("written");
        self.project.run(&["cp", "there", "one:/root/there"]).ok();
        self.project.run(&["cp", "one:/root/there", "back"]).ok();
        assert!(fs::read(there).expect("read") == fs::read(back).expect("read"), "another content");
    }

    #[track_caller]
    fn reaches_names_and_this_machine(&self) {
        let server = Server::start(|_| Reply::new(200, b"served"));
        let (_, port) = server
            .url("")
            .rsplit_once(':')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .expect("a port");
        let fetch = format!(
            "wget -qO - http://10.0.2.2:{port}/ 2>&1 || bash -c 'exec 3<>/dev/tcp/10.0.2.2/{port}; \
            printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'"
        );
        assert!(self.sh("one", &fetch).ends_with("served"));
        let name = package_server();
        if (name.as_str(), 80).to_socket_addrs().is_err() {
            return skip("this machine does not resolve names");
        }
        // A service that has just been restored may ask for its address first.
        let resolve = format!("getent hosts {name} || nslookup {name}");
        eventually_in_guest("a name", Duration::from_secs(60), || {
            let script = format!("({resolve}) >/dev/null 2>&1 && echo resolved || true");
            self.sh("one", &script) == "resolved\n"
        });
    }

    #[track_caller]
    fn runs_without_a_failed_unit(&self) {
        if self.has_systemd() {
            let state = self.sh("one", "systemctl is-system-running --wait || systemctl --failed");
            assert_eq!(state, "running\n");
        }
    }

    #[track_caller]
    fn is_suspended_and_resumed(&self) {
        self.sh("one", "echo kept > /dev/shm/kept");
        self.project.run(&["suspend", "one"]).ok();
        self.project.run(&["up", "one"]).ok().says("resuming");
        assert_eq!(self.sh("one", "cat /dev/shm/kept"), "kept\n");
    }

    #[track_caller]
    fn has_a_second_vm_and_a_clone(&self) {
        self.project.run(&["up", "two"]).ok().says("restoring from its warm template");
        self.sh("two", "echo kept > /dev/shm/kept");
        self.project.run(&["clone", "two", "three"]).ok();
        self.project.run(&["up", "three"]).ok();
        assert_eq!(self.sh("three", "cat /dev/shm/kept"), "kept\n");
        let who = ["one", "two", "three"].map(|vm| self.sh(vm, "hostname; cat /etc/machine-id"));
        for (vm, who) in ["one", "two", "three"].iter().zip(&who) {
            assert!(who.starts_with(&format!("{vm}\n")), "{who}");
        }
        let ids = who.map(|who| who.lines().nth(1).unwrap_or_default().to_owned());
        assert!(ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
        self.project.run(&["down", "two", "three"]).ok();
    }

    #[track_caller]
    fn starts_cold_again(&self) {
        self.sh("one", "echo kept > /root/kept");
        self.project.run(&["down", "one"]).ok();
        self.project.run(&["up", "one"]).ok();
        assert_eq!(
            self.sh("one", "cat /root/kept; test -e /dev/shm/kept || echo gone"),
            "kept\ngone\n"
        );
        if self.has_systemd() {
            // Its host keys may take an emulated CPU minutes, for which systemd waits.
            self.runs_without_a_failed_unit();
            eventually_in_guest("the disk's own sshd", GREETING_LIMIT, || self.greets());
        }
    }

    /// Returns `true` if the sshd behind the forwarded port answers.
    fn greets(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.sshd_port)) else {
            return false;
        };
        let mut greeting = [0; 15];
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream.read_exact(&mut greeting).is_ok() && greeting == *b"SSH-2.0-OpenSSH"
    }
}

/// Installs the newer kernel that was left beside the disk, from a repository on this machine.
fn boots_an_installed_kernel(name: &str) {
    let Some(disk) = disks::real(name) else { return };
    let package = disks::kernel_package(&disk);
    let file_name = package.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let text = package.to_str().expect("UTF-8");
    let field = |field: &str| {
        let output = tool("dpkg-deb", &["--field", text, field]).stdout;
        String::from_utf8(output).expect("UTF-8").trim().to_owned()
    };
    let digest = tool("sha256sum", &[text]).stdout;
    let bytes = fs::read(&package).expect("read");
    let index = format!(
        "{}Filename: ./{file_name}\nSize: {}\nSHA256: {}\n\n",
        String::from_utf8(tool("dpkg-deb", &["--field", text]).stdout).expect("UTF-8"),
        bytes.len(),
        String::from_utf8_lossy(&digest[..64])
    );
    let (installed, version) = (field("Package"), field("Package").replace("linux-image-", ""));
    let server = Server::start(move |request| match request.path.as_str() {
        "/Packages" | "/./Packages" => Reply::new(200, index.as_bytes()),
        path if path.ends_with(".deb") => Reply::file(request, &bytes, None),
        _ => Reply::new(404, b""),
    });
    let port = server.url("").rsplit(':').next().expect("a port").to_owned();

    let life = Life::on(&disk);
    life.project.run(&["up", "--cold", "one"]).ok();
    let before = life.sh("one", "uname -r");
    assert_ne!(before.trim(), version);
    let apt = "apt-get -o Dir::Etc::sourcelist=/root/local.list -o Dir::Etc::sourceparts=-";
    life.sh("one", &format!(
        "echo 'deb [trusted=yes] http://10.0.2.2:{port} ./' > /root/local.list; {apt} update && \
        DEBIAN_FRONTEND=noninteractive {apt} install -y --no-install-recommends {installed}"
    ));
    life.project.run(&["down", "one"]).ok();
    let up = life.project.run(&["up", "one"]).ok();
    assert!(!up.stderr.contains("does not come up"), "{}", up.stderr);
    assert_eq!(life.sh("one", "uname -r").trim(), version);
    assert_eq!(life.sh("one", "modprobe dummy && grep -c ^dummy /proc/modules"), "1\n");
    life.runs_without_a_failed_unit();
}
