//! Benchmarks of distributions' disks: cold boots beside the same disk without Castra, in time and
//! in QEMU's CPU time, which other work on the machine changes less; and restores beside those of
//! the default image.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::common::{Bench, only_entry};
use super::plain::{command_line_of, helper, plain_arguments};
use super::table::{Row, median};
use crate::disks;

/// Number of boots of each kind.
const BOOTS: usize = 3;
/// Number of restores of each kind.
const STARTS: usize = 5;
/// Time after which a boot without Castra counts as hung.
const LIMIT: Duration = Duration::from_secs(300);
/// Interval at which the sshd is tried, and the time for its greeting.
const RETRY: Duration = Duration::from_millis(100);
const GREETING_LIMIT: Duration = Duration::from_secs(2);
/// Clock ticks per second in `/proc`, on every x86 Linux (`USER_HZ`).
const TICKS: u32 = 100;
/// Size of the VMs' disks.
const DISK: &str = "3G";

/// Disk and the goal for its cold boots.
const DISKS: [(&str, &str); 2] =
    [("bookworm-ext4", "at most 8 s and 0.40"), ("trixie-xfs", "at most 22 s and 0.40")];

/// Measures with a directory for each disk, and one for the default image.
pub(super) fn measure() -> Result<Vec<Row>, String> {
    Bench::within("bench-image", |image| {
        image.castra.run(&["up"])?;
        image.forget_vm()?;
        let mut rows = Vec::new();
        for (name, goal) in DISKS {
            rows.extend(Bench::within("bench-disk", |bench| of_disk(bench, name, goal, image))?);
        }
        Ok(rows)
    })
}

fn of_disk(bench: &Bench, name: &str, goal: &str, image: &Bench) -> Result<Vec<Row>, String> {
    let failed = |error: std::io::Error| format!("{name}: {error}");
    let base = bench.directory.join("disk.qcow2");
    fs::copy(disks::build(name)?.join("disk.qcow2"), &base).map_err(failed)?;
    let config = "[[vms]]\nname = \"disk\"\nbase_image = \"disk.qcow2\"\nmemory = \"512 MiB\"\n\
        disk = \"3 GiB\"\n";
    fs::write(bench.directory.join("castra.toml"), config).map_err(failed)?;
    // Also hashes the disk, which is remembered.
    bench.castra.run(&["up", "--cold"])?;
    let native = NativeBoot::of_the_running_vm(&bench.directory, &base)?;
    bench.forget_vm()?;
    let (mut natives, mut colds) = (Boots::default(), Boots::default());
    for _ in 0..BOOTS {
        colds.push(name, (bench.castra.time(&["up", "--cold"])?, cpu_time(&bench.qemu_pid()?)?));
        bench.forget_vm()?;
        natives.push(&format!("{name} without Castra"), native.to_sshd()?);
    }
    bench.castra.run(&["up"])?;
    bench.forget_vm()?;
    let (mut warm, mut of_image) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        of_image.push(image.first_output()?);
        warm.push(bench.first_output()?);
    }
    Ok(vec![
        Row::against(
            &format!("cold `castra up --cold` of {name}"),
            median(colds.elapsed),
            ("the same disk without Castra until its sshd answers", median(natives.elapsed)),
            goal,
        ),
        Row::against(
            "its QEMU's CPU time",
            median(colds.cpu),
            ("the same, CPU time", median(natives.cpu)),
            "at most 0.40",
        ),
        Row::against(
            &format!("warm `castra up` of {name} and first output"),
            median(warm),
            ("the default image's", median(of_image)),
            "at most 1.5",
        ),
    ])
}

/// Times of boots, each with its QEMU's CPU time.
#[derive(Default)]
struct Boots {
    elapsed: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Boots {
    /// Adds a boot, and prints it: the next one may take minutes.
    #[expect(clippy::print_stderr, reason = "a command line tool talks to its user")]
    fn push(&mut self, what: &str, (elapsed, cpu): (Duration, Duration)) {
        eprintln!("{what}: {elapsed:.1?}, {cpu:.1?} of CPU time");
        self.elapsed.push(elapsed);
        self.cpu.push(cpu);
    }
}

/// Returns the CPU time that a process has used (`proc_pid_stat(5)`).
fn cpu_time(pid: &str) -> Result<Duration, String> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    // The name of the program, in parentheses, may contain anything.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks: Vec<u32> =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, system] => Ok(Duration::from_secs(1) * (user + system) / TICKS),
        _ => Err(format!("{path} has no times")),
    }
}

impl Bench {
    /// Returns the process ID of the running VM's QEMU.
    fn qemu_pid(&self) -> Result<String, String> {
        let file = only_entry(&self.directory.join(".castra/vms"))?.join("qemu.pid");
        let pid = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(pid.trim().to_owned())
    }

    /// Measures a start and a command in it, and forgets the VM.
    fn first_output(&self) -> Result<Duration, String> {
        let started = Instant::now();
        self.castra.run(&["up"])?;
        self.castra.run(&["exec", "--", "true"])?;
        let elapsed = started.elapsed();
        self.forget_vm()?;
        Ok(elapsed)
    }
}

/// Parameters of a boot of the disk's own kernel and initramfs, without its boot loader, whose time
/// is left out.
struct NativeBoot {
    program: PathBuf,
    arguments: Vec<String>,
    base: PathBuf,
    overlay: PathBuf,
    port: u16,
}

impl NativeBoot {
    /// Takes QEMU's arguments and the kernel from the VM that runs in `directory`.
    fn of_the_running_vm(directory: &Path, base: &Path) -> Result<Self, String> {
        let vm = only_entry(&directory.join(".castra/vms"))?;
        let record = fs::read_to_string(vm.join("vm.json")).map_err(|error| error.to_string())?;
        let record: serde_json::Value =
            serde_json::from_str(&record).map_err(|error| error.to_string())?;
        let kernel = &record["boot"]["kernel"];
        let text = |name: &str| kernel[name].as_str().ok_or_else(|| format!("no {name}"));
        let keep = |name: &str| {
            let (from, to) = (vm.join("kernels").join(text(name)?), directory.join(name));
            fs::copy(&from, &to).map_err(|error| format!("{}: {error}", from.display()))?;
            Ok::<_, String>(to)
        };
        let (linux, initramfs) = (keep("kernel_sha256")?, keep("initramfs_sha256")?);
        let line = format!("{} console=ttyS0", text("command_line")?);
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let port = listener.local_addr().map_err(|error| error.to_string())?.port();
        let overlay = directory.join("native.qcow2");
        let (program, words) = command_line_of(&vm)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut arguments = plain_arguments(&words, &initramfs, &overlay);
        let forward = format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22");
        for (option, value) in [
            ("-kernel", linux.to_string_lossy().as_ref()),
            ("-append", &line),
            ("-netdev", &forward),
        ] {
            let at = arguments.iter().position(|word| word == option).ok_or("no such option")?;
            value.clone_into(&mut arguments[at + 1]);
        }
        Ok(Self { program, arguments, base: base.to_owned(), overlay, port })
    }

    /// Boots a fresh disk. Returns the time until the greeting of its sshd, and QEMU's CPU time.
    fn to_sshd(&self) -> Result<(Duration, Duration), String> {
        let (base, overlay) = (self.base.to_string_lossy(), self.overlay.to_string_lossy());
        let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &overlay, DISK];
        helper("qemu-img", &create)?;
        let started = Instant::now();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let mut qemu = command.spawn().map_err(|error| error.to_string())?;
        let seen = self.wait_for_greeting(&mut qemu, started);
        let cpu = cpu_time(&qemu.id().to_string());
        // The measurement is over.
        let _ = qemu.kill();
        let _ = qemu.wait();
        fs::remove_file(&self.overlay).map_err(|error| error.to_string())?;
        Ok((seen?, cpu?))
    }

    fn wait_for_greeting(&self, qemu: &mut Child, started: Instant) -> Result<Duration, String> {
        while started.elapsed() < LIMIT {
            if let Ok(Some(ended)) = qemu.try_wait() {
                return Err(format!("QEMU ended: {ended}"));
            }
            if self.greets() {
                return Ok(started.elapsed());
            }
            thread::sleep(RETRY);
        }
        Err(format!("no sshd after {LIMIT:?}"))
    }

    /// Returns `true` if an sshd answers. QEMU accepts connections for a guest that is not there.
    fn greets(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut greeting = [0; 4];
        stream.set_read_timeout(Some(GREETING_LIMIT)).is_ok()
            && stream.read_exact(&mut greeting).is_ok()
            && greeting == *b"SSH-"
    }
}
