//! A real guest's emulated CPU: its features by default, and under the `cpu` setting of a VM.

use castra_test_support::{Ended, Project};

/// Flags of x86-64-v2 beyond the baseline, as Linux names them, and `rdrand`.
const FLAGS: [&str; 7] = ["cx16", "lahf_lm", "popcnt", "rdrand", "sse4_1", "sse4_2", "ssse3"];

/// Returns an x86-64 program with one instruction of each extension of x86-64-v2, which then exits
/// with 0.
fn v2_program() -> Vec<u8> {
    const CODE: [&[u8]; 10] = [
        &[0xf3, 0x48, 0x0f, 0xb8, 0xc1],             // popcnt rax, rcx
        &[0x66, 0x0f, 0x38, 0x00, 0xc1],             // pshufb xmm0, xmm1: SSSE3
        &[0x66, 0x48, 0x0f, 0x3a, 0x22, 0xc0, 0x00], // pinsrq xmm0, rax, 0: SSE4.1
        &[0x66, 0x0f, 0x38, 0x37, 0xc1],             // pcmpgtq xmm0, xmm1: SSE4.2
        &[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc1],       // crc32 rax, rcx: SSE4.2
        &[0x9f],                                     // lahf
        &[0x48, 0x0f, 0xc7, 0x0c, 0x24],             // cmpxchg16b [rsp]
        &[0x31, 0xff],                               // xor edi, edi
        &[0xb8, 60, 0, 0, 0],                        // mov eax, 60: exit
        &[0x0f, 0x05],                               // syscall
    ];
    elf(&CODE.concat())
}

/// Returns a static ELF program (System V ABI, "Object Files") of one segment with this code.
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS_BYTES: u64 = 64 + 56;
    const ADDRESS: u64 = 0x40_0000;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable for x86-64, version 1.
    for half in [2_u16, 62, 1, 0] {
        file.extend(half.to_le_bytes());
    }
    // Entry, program headers, section headers.
    for word in [ADDRESS + HEADERS_BYTES, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    // Flags; sizes and numbers of the headers.
    for half in [0_u16, 0, 64, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // One segment that is loaded, readable and executable.
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    let bytes = HEADERS_BYTES + code.len() as u64;
    for word in [0, ADDRESS, ADDRESS, bytes, bytes, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

fn flags(project: &Project, vm: &str) -> Vec<String> {
    let ended = project.run(&["exec", vm, "--", "cat", "/proc/cpuinfo"]).ok().text();
    let line = ended.lines().find(|line| line.starts_with("flags")).expect("flags").to_owned();
    line.split_whitespace().filter(|word| FLAGS.contains(word)).map(str::to_owned).collect()
}

fn run_v2_program(project: &Project, vm: &str) -> Ended {
    let line = "cat > /tmp/v2 && chmod +x /tmp/v2 && /tmp/v2";
    project.run_with_input(&["exec", vm, "--", "sh", "-c", line], &v2_program())
}

#[test]
fn programs_for_x86_64_v2_run_unless_the_vm_has_another_cpu() {
    let mut project = Project::new();
    project.set("CASTRA_ACCELERATOR", "tcg");
    let vm = |name: &str, more: &str| {
        format!("[[vms]]\nname = \"{name}\"\nmanaged_image = \"alpine-pypi\"\n{more}\n")
    };
    let old = "cpu = \"qemu64,+rdrand\"";
    project.write("castra.toml", &(vm("new", "") + &vm("old", old)));
    project.run(&["up", "--cold"]).ok();

    let mut found = flags(&project, "new");
    found.sort();
    assert_eq!(found, FLAGS);
    run_v2_program(&project, "new").ok();

    let found = flags(&project, "old");
    assert!(!found.contains(&"popcnt".to_owned()), "{found:?}");
    // 128 and SIGILL.
    run_v2_program(&project, "old").code(132);

    // A suspended VM is not given another CPU.
    project.run(&["suspend", "old"]).ok();
    project.write("castra.toml", &(vm("new", "") + &vm("old", "")));
    project.run(&["up", "old"]).ok().says("with the CPU it was suspended with, `qemu64,+rdrand`");
    run_v2_program(&project, "old").code(132);
    project.run(&["down", "old"]).ok();
    project.run(&["up", "--cold", "old"]).ok();
    run_v2_program(&project, "old").ok();
}

#[test]
fn several_cpus_work_at_once_in_threads_that_qemu_can_run() {
    let mut project = Project::new();
    project.set("CASTRA_ACCELERATOR", "tcg");
    project.write(
        "castra.toml",
        "[[vms]]\nname = \"two\"\nmanaged_image = \"alpine-pypi\"\ncpus = 2\n",
    );
    project.run(&["up", "--cold"]).ok();
    let status = project.run(&["status", "--json"]).ok().text();
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let version = status["vms"][0]["qemu_version"].as_str().expect("a version").to_owned();
    let major: u32 = version.split('.').next().and_then(|text| text.parse().ok()).expect(&version);
    let command = std::fs::read(format!("/proc/{}/cmdline", project.qemu_pid("two")));
    let command = String::from_utf8_lossy(&command.expect("reads")).replace('\0', " ");
    let threads = if major >= 10 { "thread=multi" } else { "thread=single" };
    assert!(command.contains(&format!("-accel tcg,{threads} ")), "QEMU {version}: {command}");

    let script = "for copy in 1 2; do sha256sum /bin/busybox & done; wait; \
        grep -c '^cpu[01] [1-9]' /proc/stat";
    let sums = project.run(&["exec", "--", "sh", "-c", script]).ok().text();
    let sums: Vec<&str> = sums.lines().collect();
    assert!(matches!(sums[..], [one, other, "2"] if one == other), "{sums:?}");
    project.run(&["suspend"]).ok();
    project.run(&["up"]).ok();
    assert_eq!(project.run(&["exec", "--", "nproc"]).ok().text().trim(), "2");
}
