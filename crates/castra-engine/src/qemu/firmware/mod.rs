//! UEFI firmware of this machine: OVMF, wherever a distribution has put it.
//!
//! QEMU brings a BIOS and, in most distributions, no UEFI. Where to find one is said by the
//! firmware's own descriptors (`docs/interop/firmware.json` in QEMU's sources), or else known of
//! distributions.

mod descriptor;

use std::fs;
use std::path::{Path, PathBuf};

use super::chain::{Layer, LayerFormat};
use super::error::QemuError;
use super::options::MachineType;
use crate::context::Environment;
use crate::files::open_regular;

/// Variable that names the firmware's code.
pub const CODE: &str = "CASTRA_UEFI_CODE";
/// Variable that names the template of the firmware's variables.
pub const VARIABLES: &str = "CASTRA_UEFI_VARS";

/// Pairs of code and variables, by distribution, those for most machines first. None of them
/// requires system management mode, which Castra's machines do not have.
const PAIRS: [(&str, &str); 10] = [
    // Debian, Ubuntu
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    // Fedora
    ("/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2", "/usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    // Arch
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2-ovmf/x64/OVMF_CODE.fd", "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd"),
    // Alpine
    ("/usr/share/ovmf/OVMF_CODE.fd", "/usr/share/ovmf/OVMF_VARS.fd"),
    // openSUSE
    ("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    // QEMU's own build of it, for instance in Homebrew's: the variables are those of i386.
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
];
/// Directories with descriptors, the one with precedence first.
const DESCRIPTORS: [&str; 2] = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];

/// Firmware: its code, and the template of its variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UefiFirmware {
    /// Code, which is only read.
    pub code: Layer,
    /// Variables of a machine that has never run, which are copied.
    pub variables: Layer,
}

impl UefiFirmware {
    /// Finds the firmware for a machine: the one that the environment names, or else an installed
    /// one. Of those, one whose variables have this size is preferred, since variables fit only
    /// firmware that is laid out in the same way.
    ///
    /// # Errors
    /// [`QemuError::NoUefi`], [`QemuError::HalfOfUefi`] or [`QemuError::NamedUefi`].
    pub fn find(
        environment: &Environment,
        qemu: &Path,
        machine: &MachineType,
        variables_bytes: Option<u64>,
    ) -> Result<Self, QemuError> {
        match (environment.get(CODE), environment.get(VARIABLES)) {
            (Some(code), Some(variables)) => Self::named(code.into(), variables.into()),
            (None, None) => {
                let found = installed(Path::new("/"), qemu, environment, machine);
                let fits = |one: &&Self| variables_bytes == length_of(&one.variables.path);
                let fitting = found.iter().find(fits).or(found.first());
                fitting.cloned().ok_or(QemuError::NoUefi)
            }
            (code, _) => {
                let (set, unset) =
                    if code.is_some() { (CODE, VARIABLES) } else { (VARIABLES, CODE) };
                Err(QemuError::HalfOfUefi { set, unset })
            }
        }
    }

    fn named(code: PathBuf, variables: PathBuf) -> Result<Self, QemuError> {
        for (variable, path) in [(CODE, &code), (VARIABLES, &variables)] {
            let failed = |source| QemuError::NamedUefi { variable, path: path.clone(), source };
            open_regular(path).map_err(failed)?;
        }
        Ok(Self::of(code, variables))
    }

    fn of(code: PathBuf, variables: PathBuf) -> Self {
        let layer = |path: PathBuf| {
            let is_qcow2 = path.extension().is_some_and(|extension| extension == "qcow2");
            Layer { format: if is_qcow2 { LayerFormat::Qcow2 } else { LayerFormat::Raw }, path }
        };
        Self { code: layer(code), variables: layer(variables) }
    }

    fn is_there(&self) -> bool {
        [&self.code, &self.variables].iter().all(|file| length_of(&file.path).is_some())
    }
}

/// Returns all firmware of this machine that can be used, in the order of preference. Everything is
/// below `root`.
fn installed(
    root: &Path,
    qemu: &Path,
    environment: &Environment,
    machine: &MachineType,
) -> Vec<UefiFirmware> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    // Homebrew's and Nix's QEMU have their files beside them. Theirs may be links.
    let real = qemu.canonicalize();
    let programs = [Some(qemu), real.as_deref().ok()];
    let shares: Vec<PathBuf> = programs
        .iter()
        .filter_map(|program| Some((*program)?.parent()?.parent()?.join("share/qemu")))
        .collect();
    let own = environment.absolute_path("XDG_CONFIG_HOME");
    let own = own.or_else(|| Some(environment.absolute_path("HOME")?.join(".config")));
    let directories: Vec<PathBuf> = own
        .map(|own| own.join("qemu/firmware"))
        .into_iter()
        .chain(DESCRIPTORS.map(below))
        .chain(shares.iter().map(|share| share.join("firmware")))
        .collect();
    let described = descriptor::read_all(&directories, machine).into_iter();
    let known = PAIRS.iter().map(|(code, variables)| (below(code), below(variables)));
    let bundled = shares
        .iter()
        .map(|share| (share.join("edk2-x86_64-code.fd"), share.join("edk2-i386-vars.fd")));
    let known = known.chain(bundled).map(|(code, variables)| UefiFirmware::of(code, variables));
    described.chain(known).filter(UefiFirmware::is_there).collect()
}

/// Returns the length of a regular file.
fn length_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q35() -> MachineType {
        MachineType::default()
    }

    fn write(path: &Path, content: impl AsRef<[u8]>) {
        fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        fs::write(path, content).expect("written");
    }

    fn code_of(found: &[UefiFirmware], root: &Path) -> Vec<String> {
        let relative = |one: &UefiFirmware| {
            let path = one.code.path.strip_prefix(root).expect("below the root");
            path.to_str().expect("UTF-8").to_owned()
        };
        found.iter().map(relative).collect()
    }

    #[test]
    fn firmware_is_found_where_distributions_put_it_and_only_whole() {
        for (code, variables) in PAIRS {
            let root = tempfile::tempdir().expect("a directory");
            let at = |path: &str| root.path().join(path.trim_start_matches('/'));
            let qemu = at("/usr/bin/qemu-system-x86_64");
            let found = || installed(root.path(), &qemu, &Environment::default(), &q35());
            write(&at(code), "code");
            assert_eq!(found(), [], "{code} without variables");
            write(&at(variables), "variables");
            let found = found();
            assert_eq!(found[0], UefiFirmware::of(at(code), at(variables)));
            let is_qcow2 = found[0].code.format == LayerFormat::Qcow2;
            assert_eq!(is_qcow2, code.ends_with(".qcow2"));
        }
    }

    #[test]
    fn qemu_in_a_place_of_its_own_has_its_firmware_beside_it() {
        let root = tempfile::tempdir().expect("a directory");
        let cellar = root.path().join("opt/homebrew/Cellar/qemu/9.1.0");
        write(&cellar.join("bin/qemu-system-x86_64"), "");
        write(&cellar.join("share/qemu/edk2-x86_64-code.fd"), "code");
        write(&cellar.join("share/qemu/edk2-i386-vars.fd"), "variables");
        let bin = root.path().join("opt/homebrew/bin");
        fs::create_dir_all(&bin).expect("a directory");
        let qemu = bin.join("qemu-system-x86_64");
        std::os::unix::fs::symlink(cellar.join("bin/qemu-system-x86_64"), &qemu).expect("linked");
        let found = installed(root.path(), &qemu, &Environment::default(), &q35());
        assert_eq!(
            code_of(&found, &root.path().canonicalize().expect("real")),
            ["opt/homebrew/Cellar/qemu/9.1.0/share/qemu/edk2-x86_64-code.fd"]
        );
    }

    #[test]
    fn descriptors_go_first_and_variables_decide_among_what_is_installed() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |path: &str| root.path().join(path.trim_start_matches('/'));
        write(&at("/usr/share/OVMF/OVMF_CODE_4M.fd"), "code");
        write(&at("/usr/share/OVMF/OVMF_VARS_4M.fd"), "variables");
        write(&at("/opt/code.fd"), "code");
        write(&at("/opt/vars.fd"), "vars");
        let text = |features: &str| {
            format!(
                r#"{{"interface-types": ["uefi"], "mapping": {{"device": "flash",
                "executable": {{"filename": "{0}/opt/code.fd", "format": "raw"}},
                "nvram-template": {{"filename": "{0}/opt/vars.fd", "format": "raw"}}}},
                "targets": [{{"architecture": "x86_64", "machines": ["pc-q35-*"]}}],
                "features": [{features}]}}"#,
                root.path().display()
            )
        };
        let descriptor = at("/usr/share/qemu/firmware/60-own.json");
        let found = || {
            let qemu = at("/usr/bin/qemu-system-x86_64");
            let found = installed(root.path(), &qemu, &Environment::default(), &q35());
            code_of(&found, root.path())
        };
        write(&descriptor, text(""));
        assert_eq!(found()[..2], ["opt/code.fd", "usr/share/OVMF/OVMF_CODE_4M.fd"]);
        write(&descriptor, text(r#""requires-smm""#));
        assert_eq!(found()[0], "usr/share/OVMF/OVMF_CODE_4M.fd");
        write(&descriptor, "{");
        assert_eq!(found()[0], "usr/share/OVMF/OVMF_CODE_4M.fd");
        // An empty file of this machine's administrator hides it.
        write(&descriptor, text(""));
        write(&at("/etc/qemu/firmware/60-own.json"), "");
        assert_eq!(found()[0], "usr/share/OVMF/OVMF_CODE_4M.fd");
    }

    #[test]
    fn named_firmware_is_named_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let (code, vars) = (directory.path().join("code.fd"), directory.path().join("vars.fd"));
        write(&code, "code");
        let find = |variables: &[(&str, &Path)]| {
            let environment = Environment::of(variables.to_vec());
            UefiFirmware::find(&environment, Path::new("/usr/bin/qemu"), &q35(), None)
        };
        let half = find(&[(CODE, &code)]);
        assert!(matches!(half, Err(QemuError::HalfOfUefi { unset: VARIABLES, .. })), "{half:?}");
        let missing = find(&[(CODE, &code), (VARIABLES, &vars)]);
        assert!(matches!(&missing, Err(QemuError::NamedUefi { path, .. }) if *path == vars));
        write(&vars, "variables");
        let found = find(&[(CODE, &code), (VARIABLES, &vars)]).expect("both are there");
        assert_eq!(found, UefiFirmware::of(code, vars));
    }
}
