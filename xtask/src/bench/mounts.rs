//! Benchmarks of mounts: files of the host in a VM, compared with the VM's own disk.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::common::Bench;
use super::table::{Row, median};

/// Number of small files.
const FILES: usize = 2000;
/// Number of measurements of each kind.
const ROUNDS: usize = 5;
/// Number of starts with mounts and without, a second each.
const STARTS: usize = 10;

/// Measures one kind of work in the directory `$1`, and prints its milliseconds. What is read has
/// been dropped from the guest's memory.
const WORK: &str = r#"
now() { cut -d' ' -f1 /proc/uptime; }
cold() { sync; echo 3 > /proc/sys/vm/drop_caches; }
case $2 in
find) cold; begun=$(now); find $1/few -type f -newer /etc/passwd > /dev/null ;;
read) cold; begun=$(now); cat $1/few/* > /dev/null ;;
create) begun=$(now); i=0; while [ $i -lt 300 ]; do echo x > $1/new-$i; i=$((i+1)); done ;;
write) begun=$(now); dd if=/dev/zero of=$1/large bs=1M count=32 conv=fsync 2> /dev/null ;;
sequence) cold; begun=$(now); dd if=$1/large of=/dev/null bs=1M 2> /dev/null ;;
esac
ended=$(now)
rm -f $1/new-*
awk "BEGIN { print ($ended - $begun) * 1000 }"
"#;

/// The kinds of work, what they are, and the goals of their ratios.
const KINDS: [(&str, &str, &str); 5] = [
    ("find", "`find` and `stat` of 2,000 files in a mount, cold", "at most 2"),
    ("read", "reading 2,000 small files, cold", "at most 4"),
    ("create", "creating 300 files", "at most 20"),
    ("write", "writing 32 MiB and `fsync`", "at most 2"),
    ("sequence", "reading 32 MiB, cold", "at most 2"),
];

/// Measures everything about mounts.
pub(super) fn measure() -> Result<Vec<Row>, String> {
    Bench::within("bench-mounts", |bench| {
        let shared = bench.directory.join("shared");
        fill(&shared).map_err(|error| error.to_string())?;
        bench.castra.run(&["up", "--mount", "shared:/shared"])?;
        bench.castra.run(&["exec", "--", "cp", "-r", "/shared", "/root/own"])?;
        let mut rows = Vec::new();
        for (kind, what, goal) in KINDS {
            let (mut in_mount, mut on_disk) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                on_disk.push(work(bench, "/root/own", kind)?);
                in_mount.push(work(bench, "/shared", kind)?);
            }
            let own = ("the VM's own disk", median(on_disk));
            rows.push(Row::against(what, median(in_mount), own, goal));
        }
        rows.push(beside_tar(bench)?);
        bench.forget_vm()?;
        rows.push(starts(bench)?);
        Ok(rows)
    })
}

fn fill(shared: &Path) -> std::io::Result<()> {
    fs::create_dir_all(shared.join("few"))?;
    (0..FILES).try_for_each(|number| {
        fs::write(shared.join(format!("few/file-{number}")), format!("{number}\n").repeat(100))
    })
}

/// Returns the time that the guest takes for some work in a directory.
fn work(bench: &Bench, directory: &str, kind: &str) -> Result<Duration, String> {
    let printed = bench.castra.output(&["exec", "--", "sh", "-c", WORK, "sh", directory, kind])?;
    let ms: f64 = printed.trim().parse().map_err(|_| format!("{kind}: printed {printed}"))?;
    // A quick one is below the guest's clock.
    Ok(Duration::from_secs_f64(ms.max(5.0) / 1e3))
}

/// Compares copying the files from the mount with a tar stream.
fn beside_tar(bench: &Bench) -> Result<Row, String> {
    let (mut copies, mut tars) = (Vec::new(), Vec::new());
    let forget = ["exec", "--", "sh", "-c", "rm -rf /root/few; sync"];
    for _ in 0..ROUNDS {
        let copy = ["exec", "--", "cp", "-r", "/shared/few", "/root/"];
        copies.push(bench.castra.time(&copy)?);
        bench.castra.run(&forget)?;
        let source = bench.directory.join("shared/few");
        let started = Instant::now();
        bench.castra.run(&["cp", &source.to_string_lossy(), ":/root/"])?;
        tars.push(started.elapsed());
        bench.castra.run(&forget)?;
    }
    let tar = ("`castra cp`", median(tars));
    Ok(Row::against("copying 2,000 small files from a mount", median(copies), tar, "-"))
}

/// Compares fresh VMs with a mount and without.
fn starts(bench: &Bench) -> Result<Row, String> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        for (times, arguments) in
            [(&mut with, &["up", "--mount", "shared:/shared"][..]), (&mut without, &["up"])]
        {
            times.push(bench.castra.time(arguments)?);
            bench.forget_vm()?;
        }
    }
    let without = ("without", median(without));
    Ok(Row::against("warm `castra up` with a mount", median(with), without, "20 ms more"))
}
