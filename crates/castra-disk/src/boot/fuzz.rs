//! Fuzz targets: parsers of boot loaders' files, tried with any bytes. `fuzz/` runs the same
//! functions under libFuzzer.

use super::bls::{self, BlsEntry};
use super::command_line::CommandLine;
use super::variables::Variables;
use super::{extlinux, grub, kernel, pe};

fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

/// Parses `grub.cfg`.
pub fn grub_config(data: &[u8]) {
    for entry in grub::parse(&text(data), &mut Variables::default()) {
        assert!(!entry.initramfs.iter().any(|file| file.starts_with("(hd0)")));
        let _ = CommandLine::parse(&entry.options);
    }
}

/// Parses `grubenv`, and an entry of the Boot Loader Specification that uses it: the first blank
/// line separates them.
pub fn loader_entry(data: &[u8]) {
    let text = text(data);
    let (environment, entry) = text.split_once("\n\n").unwrap_or(("", &text));
    let variables = Variables::parse(environment);
    let entries = [("b", entry), ("a", &text)];
    let parsed = entries.iter().filter_map(|(id, text)| BlsEntry::parse(id, text, &variables));
    let mut parsed: Vec<_> = parsed.collect();
    bls::order(&mut parsed, variables.get("saved_entry"));
}

/// Parses `extlinux.conf`.
pub fn extlinux_config(data: &[u8]) {
    for label in extlinux::parse(&text(data)) {
        assert!(!label.kernel.is_empty());
        assert!(!label.options.split(' ').any(|option| option.starts_with("initrd=")));
    }
}

/// Looks for the sections of a unified kernel image, and for the version of a kernel.
pub fn unified_image(data: &[u8]) {
    for name in [".linux", ".initrd", ".cmdline", ".uname"] {
        let section = pe::section(data, name);
        assert!(section.is_none_or(|section| section.len() <= data.len()));
    }
    if let Some(version) = kernel::version_inside(data) {
        assert!(!version.contains('/') && version.starts_with(|char: char| char.is_ascii_digit()));
    }
}

#[cfg(test)]
mod tests {
    use castra_test_support::try_out;

    use super::*;

    #[test]
    fn spoilt_grub_configurations() {
        try_out("grub_config", grub_config, &[grub::DEBIAN.into()]);
    }

    #[test]
    fn spoilt_loader_entries() {
        let environment = "# GRUB Environment Block\nsaved_entry=a\nkernelopts=ro\n\n";
        try_out("loader_entry", loader_entry, &[format!("{environment}{}", bls::FEDORA).into()]);
    }

    #[test]
    fn spoilt_extlinux_configurations() {
        try_out(
            "extlinux_config",
            extlinux_config,
            &[extlinux::ALPINE.into(), extlinux::OLD.into()],
        );
    }

    #[test]
    fn spoilt_unified_images() {
        let sections = [(".linux", &b"kernel"[..]), (".initrd", b"x"), (".uname", b"6.1")];
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20f] = 1;
        kernel[0x300..0x304].copy_from_slice(b"6.1 ");
        try_out("unified_image", unified_image, &[pe::file_of(&sections), kernel]);
    }
}
