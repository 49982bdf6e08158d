//! Benchmarks of warm starts: a fresh VM restored from a template, compared with a plain boot and
//! with the floor.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::common::Bench;
use super::floor::Floor;
use super::table::{Row, median};

/// Number of starts of each kind, a second each.
const STARTS: usize = 10;
/// Number of times that a VM is suspended and resumed.
const SUSPENSIONS: usize = 5;
/// Number of VMs that run at once when their memory is measured.
const CLONES: usize = 10;

/// Measures warm starts, with the plain boot's time as one of the baselines.
pub(super) fn measure(bench: &Bench, plain_boot: Duration) -> Result<Vec<Row>, String> {
    // The first start makes the template.
    bench.castra.run(&["up"])?;
    let floor = Floor::like_the_running_vm(&bench.directory)?;
    bench.forget_vm()?;
    let (mut floors, mut starts, mut ups, mut runs) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        floors.push(floor.to_first_output()?);
        let started = Instant::now();
        bench.castra.run(&["up"])?;
        ups.push(started.elapsed());
        bench.castra.run(&["exec", "--", "cat", "/etc/alpine-release"])?;
        starts.push(started.elapsed());
        bench.forget_vm()?;
        runs.push(bench.castra.time(&["run", "--", "true"])?);
    }
    let (first, last) = (starts[0], starts[STARTS - 1]);
    let (floor, start) = (median(floors), median(starts));
    let mut rows = vec![
        Row::against(
            "warm `castra up` and first output",
            start,
            ("plain boot", plain_boot),
            "at most 0.025",
        ),
        Row::against(
            "the same",
            start,
            ("floor: QEMU by hand and one `ssh`", floor),
            "at most 2.0",
        ),
        Row::alone("its `castra up` alone", median(ups), "-"),
        Row::against(
            "`castra run -- true`",
            median(runs),
            ("warm `up` and first output", start),
            "at most 1.3",
        ),
        Row::against("the tenth warm start", last, ("the first", first), "about 1"),
    ];
    rows.extend(suspensions(bench, plain_boot)?);
    rows.extend(density(bench)?);
    Ok(rows)
}

/// Suspends and resumes a VM several times.
fn suspensions(bench: &Bench, plain_boot: Duration) -> Result<Vec<Row>, String> {
    bench.castra.run(&["up"])?;
    let (mut suspends, mut resumes) = (Vec::new(), Vec::new());
    for _ in 0..SUSPENSIONS {
        suspends.push(bench.castra.time(&["suspend"])?);
        let started = Instant::now();
        bench.castra.run(&["up"])?;
        bench.castra.run(&["exec", "--", "cat", "/etc/alpine-release"])?;
        resumes.push(started.elapsed());
    }
    bench.forget_vm()?;
    let (suspend, resume) = (median(suspends), median(resumes));
    Ok(vec![
        Row::alone("`castra suspend`", suspend, "at most 500 ms and writing"),
        Row::against(
            "`up` of a suspended VM and first output",
            resume,
            ("plain boot", plain_boot),
            "at most 0.025",
        ),
    ])
}

/// Measures the memory of ten idle clones of a 512 MiB VM, by their proportional set sizes
/// (`smaps_rollup` in `proc(5)`).
fn density(bench: &Bench) -> Result<Vec<Row>, String> {
    let name = |number: usize| format!("clone-{number}");
    let vm = |number| {
        format!(
            "[[vms]]\nname = \"{}\"\nmemory = \"512 MiB\"\n{}\n",
            name(number),
            bench.image_key()
        )
    };
    let text: String = (0..CLONES).map(vm).collect();
    let configuration = bench.directory.join("castra.toml");
    fs::write(&configuration, text).map_err(|error| error.to_string())?;
    let mut sums = Vec::new();
    for number in 0..CLONES {
        bench.castra.run(&["up", &name(number)])?;
        let mut sum = 0;
        for running in 0..=number {
            let pidfile = bench.directory.join(".castra/vms").join(name(running)).join("qemu.pid");
            sum += proportional_bytes(&pidfile)?;
        }
        sums.push(sum);
    }
    bench.forget_vm()?;
    fs::remove_file(&configuration).map_err(|error| error.to_string())?;
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let growth = (sums[CLONES - 1] - sums[0]) / (CLONES as u64 - 1);
    Ok(vec![
        Row::of("memory of ten idle clones of 512 MiB", mib(sums[CLONES - 1]), "-"),
        Row::of("each beyond the first", mib(growth), "at most 80 MiB"),
    ])
}

fn proportional_bytes(pidfile: &Path) -> Result<u64, String> {
    let pid = fs::read_to_string(pidfile).map_err(|error| error.to_string())?;
    let path = format!("/proc/{}/smaps_rollup", pid.trim());
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    let kib: u64 =
        line.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or("no number")?;
    Ok(kib * 1024)
}
