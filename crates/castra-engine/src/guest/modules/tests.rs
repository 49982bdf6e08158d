use std::collections::HashMap;

use super::*;

const LIST: &str = "\
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz \
kernel/net/core/failover.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/net/core/failover.ko.xz:
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/char/virtio_console.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/fs/other.ko.xz:
";

/// Files of a system, all of whose modules have their own name as content.
struct Disk(HashMap<String, Vec<u8>>);

impl Disk {
    fn with(directory: &str, list: &str) -> Self {
        let mut files = HashMap::new();
        let paths = list.lines().filter_map(|line| line.split(':').next());
        for path in paths {
            let content = format!("\x7fELF {}", name_of(path).expect("a module"));
            files.insert(format!("{directory}/{path}"), content.into_bytes());
        }
        files.insert(format!("{directory}/modules.dep"), list.as_bytes().to_vec());
        Self(files)
    }

    fn names(&self) -> Vec<String> {
        let mut read = |path: &str, limit: u64| {
            let file = self.0.get(path).ok_or("does not exist")?;
            if file.len() as u64 > limit { Err("is too large".into()) } else { Ok(file.clone()) }
        };
        let modules = modules_of("6.1.0-13", &mut read);
        for module in &modules {
            assert_eq!(module.content, format!("\x7fELF {}", module.name).as_bytes());
        }
        modules.into_iter().map(|module| module.name).collect()
    }
}

#[test]
fn each_module_comes_after_those_that_it_needs() {
    let expected = ["virtio", "virtio_console", "failover", "net_failover", "virtio_net"];
    for directory in ["/lib/modules/6.1.0-13", "/usr/lib/modules/6.1.0-13"] {
        assert_eq!(Disk::with(directory, LIST).names(), expected);
    }
}

#[test]
fn names_with_hyphens_are_found() {
    let list = "kernel/virtio-rng.ko: kernel/rng-core.ko\nkernel/rng-core.ko:\n";
    let names = Disk::with("/lib/modules/6.1.0-13", list).names();
    assert_eq!(names, ["rng_core", "virtio_rng"]);
}

#[test]
fn what_needs_an_unreadable_module_is_left_out_and_nothing_else() {
    let mut disk = Disk::with("/lib/modules/6.1.0-13", LIST);
    disk.0.remove("/lib/modules/6.1.0-13/kernel/net/core/failover.ko.xz");
    assert_eq!(disk.names(), ["virtio", "virtio_console"]);
    disk.0.remove("/lib/modules/6.1.0-13/modules.dep");
    assert!(disk.names().is_empty());
}

#[test]
fn hostile_lists_end() {
    let circle = "a/virtio_net.ko: a/virtio_blk.ko\na/virtio_blk.ko: a/virtio_net.ko\n";
    assert!(Disk::with("/lib/modules/6.1.0-13", circle).names().is_empty());
    let mut chain = String::from("m/virtio_pci.ko: m/m0.ko\n");
    for number in 0..1000 {
        chain.push_str(&format!("m/m{number}.ko: m/m{}.ko\n", number + 1));
    }
    chain.push_str("m/m1000.ko:\n");
    assert!(Disk::with("/lib/modules/6.1.0-13", &chain).names().is_empty());
    for path in ["../../../.ko", "a/..ko", "a/b c.ko", "no-module"] {
        assert_eq!(name_of(path), None, "{path}");
    }
}
