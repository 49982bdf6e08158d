//! Tests of options: texts that are accepted, texts that are refused, and round trips.

use super::*;

/// Checks that these texts survive parsing and writing unchanged.
#[track_caller]
fn kept<T: std::str::FromStr<Err = OptionError> + std::fmt::Display>(texts: &[&str]) {
    for text in texts {
        let read = text.parse::<T>().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(read.to_string(), *text);
    }
}

#[track_caller]
fn refused<T: std::str::FromStr<Err = OptionError> + std::fmt::Debug>(texts: &[&str]) {
    for text in texts {
        let error = text.parse::<T>().expect_err(text);
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
        assert!(!error.help().is_empty());
    }
}

#[test]
fn honest_devices_are_kept() {
    kept::<Device>(&[
        "virtio-rng-pci",
        "virtio-rng-pci,max-bytes=1024,period=1000",
        "virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=off",
        "vmgenid,guid=auto",
        "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87",
        "e1000,mac=52:54:00:12:34:ab,romfile=",
        "qemu-xhci,id=usb",
        "usb-tablet,bus=usb.0",
        "VGA",
    ]);
    let every = DeviceModel::ALL.map(DeviceModel::name);
    kept::<Device>(&every);
    for model in DeviceModel::ALL {
        let properties = model.properties().iter().map(|one| one.example());
        let text = std::iter::once(model.name()).chain(properties).collect::<Vec<_>>().join(",");
        kept::<Device>(&[&text]);
    }
    assert_eq!(
        "e1000,mac=52:54:00:12:34:AB".parse::<Device>().expect("read").to_string(),
        "e1000,mac=52:54:00:12:34:ab"
    );
}

#[test]
fn a_device_reaches_nothing_of_the_host() {
    refused::<Device>(&[
        "",
        "loader,file=/home/ada/.ssh/id_ed25519,addr=0x1000000,force-raw=on",
        "usb-mtp,rootdir=/home/ada,readonly=off",
        "guest-loader,kernel=/etc/passwd,addr=0",
        "vhost-user-fs-pci,chardev=x",
        "virtio-9p-pci,fsdev=x,mount_tag=x",
        "usb-host,hostbus=1",
        "vfio-pci,host=00:02.0",
        "pci-assign",
        "ivshmem-plain,memdev=ram",
        "isa-debugcon,chardev=qmp",
        "virtserialport,chardev=qmp",
        "virtio-blk-pci,drive=disk-file",
        "usb-storage,drive=disk",
        "intel-hda",
        "help",
        "?",
        "virtio-rng-pci,help",
        "virtio-rng-pci,rng=x",
        "virtio-rng-pci,romfile=/etc/passwd",
        "virtio-rng-pci,max-bytes=-1",
        "virtio-rng-pci,max-bytes=0x10",
        "virtio-rng-pci,max-bytes=010",
        "virtio-rng-pci,max-bytes=+1",
        "virtio-rng-pci,max-bytes=1000000000000000000",
        "virtio-rng-pci,max-bytes=1,max-bytes=2",
        "virtio-rng-pci,",
        "virtio-rng-pci,,x",
        "virtio-rng-pci, period=1",
        " virtio-rng-pci",
        "virtio-rng-pci\n",
        "virtio-rng-pci\0",
        "VIRTIO-RNG-PCI",
        "driver=loader,file=/etc/passwd",
        "{\"driver\":\"loader\",\"file\":\"/etc/passwd\"}",
        "e1000,romfile=/home/ada/.ssh/id_ed25519",
        "e1000,romfile=x",
        "e1000,romfile",
        "e1000,netdev=net",
        "e1000,mac=52:54:00:12:34",
        "e1000,mac=52:54:00:12:34:56:78",
        "e1000,mac=5:254:00:12:34:56",
        "vmgenid,guid=324e6eafd1d14bf6bf41b9bb6c91fb87",
        "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb8-",
        "usb-kbd,pcap=/home/ada/.bashrc",
        "usb-tablet,display=x",
        "usb-tablet,romfile=",
        "VGA,romfile=",
        "qemu-xhci,bus=usb.0",
        "virtio-rng-pci,mac=52:54:00:12:34:56",
        "usb-kbd,bus=a/b",
        "qemu-xhci,id=a=b",
        "qemu-xhci,id=",
        "qemu-xhci,id=1",
        "qemu-xhci,id=ä",
    ]);
}

#[test]
fn a_machine_is_a_board_and_switches() {
    kept::<MachineType>(&[
        "q35",
        "pc",
        "q35,sata=off,smbus=off,vmport=off",
        "pc-q35-7.2,usb=on",
        "pc-i440fx-10.1,hpet=off,acpi=on",
    ]);
    let every = Switch::ALL.map(|switch| format!("q35,{}=off", switch.name()));
    every.iter().for_each(|text| kept::<MachineType>(&[text]));
    assert_eq!(MachineType::default().to_string(), "q35,sata=off,smbus=off,vmport=off");
    refused::<MachineType>(&[
        "",
        "none",
        "microvm",
        "isapc",
        "help",
        "q35,help",
        "q35,",
        "q35,sata",
        "q35,sata=yes",
        "q35,sata=off,sata=off",
        "q35,vmport=auto",
        "q35,firmware=/etc/passwd",
        "q35,kernel=/etc/passwd",
        "q35,initrd=/home/ada/.ssh/id_ed25519",
        "q35,dtb=/etc/passwd",
        "q35,dumpdtb=/home/ada/.bashrc",
        "q35,append=x",
        "q35,accel=kvm",
        "q35,memory-backend=x",
        "q35,x-oem-id=x",
        "q35, sata=off",
        "q35,sata=off\n",
        "type=q35",
        "pc-q35-07.2",
        "pc-q35-7",
        "pc-q35-7.2.1",
        "pc-q35-+7.2",
        "pc-q35-7.2/../x",
        "q35,,sata=off",
    ]);
}

#[test]
fn a_cpu_is_a_name_and_flags() {
    kept::<CpuModel>(&[
        "max",
        "qemu64,+rdrand",
        "Skylake-Client-noTSX-IBRS,-svm,+sse4.1",
        "Haswell-v4",
        "EPYC",
        "qemu64,+lahf_lm",
    ]);
    assert_eq!(
        (CpuModel::default().to_string(), CpuModel::host().to_string()),
        ("qemu64,+rdrand,+cx16,+lahf-lm,+popcnt,+ssse3,+sse4.1,+sse4.2".into(), "host".into())
    );
    refused::<CpuModel>(&[
        "",
        "help",
        "?",
        "qemu64,rdrand=on",
        "qemu64,rdrand",
        "qemu64,+",
        "qemu64,",
        "qemu64,+a=b",
        "qemu64,+a b",
        "qemu64,model-id=x",
        "qemu64,+rdrand\n",
        "-qemu64",
        "+qemu64",
        "a/b",
        "qemu64;x",
        " max",
        &"x".repeat(65),
    ]);
}

#[test]
fn a_command_line_is_one_line() {
    kept::<CommandLine>(&["root=/dev/vda console=ttyS0", "-append,x", "ü"]);
    refused::<CommandLine>(&["", "a\nb", "a\0b", "a\tb", "\u{9b}x"]);
}

#[test]
fn formats_are_those_of_disks() {
    kept::<DiskFormat>(&DiskFormat::ALL.map(DiskFormat::name));
    refused::<DiskFormat>(&["", "qcow2,file.driver=nbd", "nbd", "ssh", "luks", "-f", "RAW"]);
    for format in DiskFormat::ALL {
        let text = serde_json::to_string(&format).expect("written");
        assert_eq!(text, format!("\"{format}\""));
        assert_eq!(serde_json::from_str::<DiskFormat>(&text).expect("read"), format);
    }
}

#[test]
fn a_file_is_read_by_the_same_rules() {
    let devices: Vec<Device> =
        serde_json::from_str(r#"["virtio-rng-pci","vmgenid,guid=auto"]"#).expect("read");
    assert_eq!(
        serde_json::to_string(&devices).expect("written"),
        r#"["virtio-rng-pci","vmgenid,guid=auto"]"#
    );
    assert!(serde_json::from_str::<Device>(r#""usb-mtp,rootdir=/""#).is_err());
    assert!(serde_json::from_str::<MachineType>(r#""q35,firmware=/x""#).is_err());
    assert!(serde_json::from_str::<CpuModel>(r#""max,x=y""#).is_err());
    assert!(serde_json::from_str::<CommandLine>("\"a\\u0000b\"").is_err());
    assert!(serde_json::from_str::<DiskFormat>(r#""nbd""#).is_err());
}

#[test]
fn the_way_out_is_named_and_only_the_environment_is_one() {
    use crate::context::Environment;

    for help in [
        "usb-mtp".parse::<Device>().expect_err("refused").help(),
        "virtio-rng-pci,rng=x".parse::<Device>().expect_err("refused").help(),
        "microvm".parse::<MachineType>().expect_err("refused").help(),
        "q35,firmware=x".parse::<MachineType>().expect_err("refused").help(),
        "max,a=b".parse::<CpuModel>().expect_err("refused").help(),
    ] {
        assert!(help.contains(UserArguments::VARIABLE), "{help}");
    }
    let near = "virtio-rng".parse::<Device>().expect_err("refused").help();
    assert!(near.contains("Did you mean `virtio-rng-pci`?"), "{near}");
    let environment = Environment::of([(UserArguments::VARIABLE, " -device  usb-host,hostbus=1 ")]);
    let arguments = UserArguments::of(&environment);
    assert_eq!(arguments.words(), ["-device", "usb-host,hostbus=1"]);
    assert_eq!(arguments.identity().as_deref(), Some("-device usb-host,hostbus=1"));
    assert_eq!(UserArguments::of(&Environment::default()).identity(), None);
}

proptest::proptest! {
    /// Every accepted text is parsed to an equal value again, and contains nothing that could name
    /// a file.
    #[test]
    fn nothing_that_is_taken_names_a_file(
        text in "(q35|pc|max|e1000|usb-kbd|virtio-rng-pci|vmgenid|[a-z0-9-]{1,8})(,\
            [+-]?[a-z0-9.-]{1,12}(=[a-z0-9/.:~$-]{0,12})?){0,3}"
    ) {
        fn check<T>(text: &str)
        where
            T: std::str::FromStr<Err = OptionError>,
            T: std::fmt::Display + PartialEq + std::fmt::Debug,
        {
            let Ok(read) = text.parse::<T>() else { return };
            let written = read.to_string();
            assert!(!written.contains(['/', '~', '$', ' ']), "{written}");
            assert_eq!(written.parse::<T>().as_ref(), Ok(&read));
        }
        check::<Device>(&text);
        check::<MachineType>(&text);
        check::<CpuModel>(&text);
    }
}
