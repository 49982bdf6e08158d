//! Tests of what a clean removes and keeps.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::cancel::Cancel;
use crate::config::DataDisk;
use crate::context::{Environment, RuntimeContext};
use crate::layout::{ProjectLayout, frozen_layer};
use crate::qemu::create_overlay;
use crate::report::{ImageLabel, Silent};
use crate::vm::record::{BaseKind, BaseRecord, Progress, Record, RecordError};

use super::*;

const ALL: CleanOptions<'_> =
    CleanOptions { dry_run: false, disks: false, data_disks: DataDisks::Keep, records: false };
const DISKS: CleanOptions<'_> = CleanOptions { disks: true, ..ALL };

/// A project with a VM `web`, whose disk is based on a layer, and that on an image; and `own`,
/// whose disk is based on a template's.
struct Fixture {
    root: TempDir,
    layout: ProjectLayout,
    context: RuntimeContext,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| root.path().join(name);
        let homes = ["XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"];
        let environment = Environment::of(homes.map(|name| (name, at(name))));
        let context =
            RuntimeContext::new(environment, Arc::new(Silent), Cancel::new()).expect("a home");
        let layout = ProjectLayout::unchecked(at("project").join(".castra"));
        crate::state_root::make(&layout, &context).expect("made");
        let fixture = Self { root, layout, context };
        for version in ["v1", "v2"] {
            fixture.file(&fixture.image(version));
        }
        let state = fixture.layout.state_root().to_owned();
        fixture.disk(&fixture.layer(1), &fixture.image("v1"));
        fixture.disk(&fixture.layer(2), &fixture.image("v2"));
        fixture.disk(&fixture.layout.layer("a1"), &fixture.image("v1"));
        fixture.disk(&fixture.layout.layer("a2"), &fixture.image("v1"));
        fixture.vm("web", &fixture.layer(1), Progress::Stopped);
        fixture.vm("own", &fixture.layout.layer("a1"), Progress::Stopped);
        assert!(state.is_dir());
        fixture
    }

    fn image(&self, version: &str) -> PathBuf {
        self.layout.images().image("alpine", version).join("rootfs.raw")
    }

    fn layer(&self, number: u64) -> PathBuf {
        frozen_layer(&self.layout.overlay("web"), &format!("{number:016x}"))
    }

    fn file(&self, path: &Path) {
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, vec![1; 8192]).expect("written");
    }

    fn disk(&self, path: &Path, backing: &Path) {
        self.file(path);
        File::create(path).expect("emptied");
        create_overlay(path, backing, 1 << 20).expect("written");
    }

    fn vm(&self, name: &str, backing: &Path, progress: Progress) {
        let overlay = self.layout.overlay(name);
        self.disk(&overlay, backing);
        let kind = BaseKind::Managed(ImageLabel { id: "alpine".into(), version: "v1".into() });
        let base =
            BaseRecord { kind, content: String::new(), stamp: None, allow_backing_file: false };
        let mut record = Record::new(&self.layout, name, &overlay, base);
        record.progress = progress;
        record.save(&self.layout).expect("saved");
    }

    fn clean(&self, names: &[&str], options: CleanOptions<'_>) -> CleanReport {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        clean(&names, options, &self.bounds(), self.project()).expect("cleans")
    }

    fn project(&self) -> ProjectRef<'_> {
        ProjectRef::new(&self.layout, &self.context)
    }

    fn bounds(&self) -> Arc<Bounds> {
        Arc::new(Bounds::new(&self.root.path().join("project"), &[]))
    }

    /// Returns the removed paths, relative to the state root.
    fn gone(&self, report: &CleanReport) -> BTreeSet<String> {
        let root = self.layout.state_root();
        let name =
            |one: &Cleaned| one.path.strip_prefix(root).unwrap_or(&one.path).display().to_string();
        report.removed.iter().map(name).collect()
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn why(report: &CleanReport) -> String {
    report.kept.iter().map(|kept| kept.why.as_str()).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_no_disk_is_based_on_goes_and_nothing_else() {
    let fixture = Fixture::new();
    // A disk of the user's own also keeps its backing chain.
    fixture.disk(&fixture.layout.state_root().join("mine"), &fixture.layout.layer("a2"));
    let expected = set(&["images/alpine/v2", "layer-0000000000000002.qcow2"]);
    let planned = fixture.clean(&[], CleanOptions { dry_run: true, ..ALL });
    assert_eq!(fixture.gone(&planned), expected);
    assert!(fixture.layer(2).exists());
    let done = fixture.clean(&[], ALL);
    assert_eq!(done, planned, "a dry run reports the same");
    assert!(!fixture.layer(2).exists() && !fixture.image("v2").exists());
    for stays in [
        fixture.layer(1),
        fixture.layout.layer("a1"),
        fixture.layout.layer("a2"),
        fixture.image("v1"),
    ] {
        assert!(stays.exists(), "{}", stays.display());
    }
    fs::remove_file(fixture.layout.state_root().join("mine")).expect("removed");
    assert_eq!(fixture.gone(&fixture.clean(&[], ALL)), set(&["templates/a2"]));
}

#[test]
fn a_chain_that_cannot_be_read_keeps_all_layers() {
    let fixture = Fixture::new();
    fixture.file(&fixture.layout.state_root().join("cut-off.qcow2"));
    let report = fixture.clean(&[], ALL);
    assert_eq!(fixture.gone(&report), set(&[]));
    assert!(why(&report).contains("it is unknown which ones are needed"), "{report:?}");
    fs::remove_file(fixture.image("v1")).expect("removed");
    fs::remove_file(fixture.layout.state_root().join("cut-off.qcow2")).expect("removed");
    assert!(why(&fixture.clean(&[], ALL)).contains("is missing"));
    assert!(fixture.layer(2).exists());
}

#[test]
fn a_vm_that_is_suspended_is_not_touched() {
    let fixture = Fixture::new();
    fixture.vm("web", &fixture.layer(1), Progress::Suspended);
    let files = fixture.layout.vm("web");
    for path in [files.machine_state(), files.console_log(), files.initramfs()] {
        fixture.file(&path);
    }
    let report = fixture.clean(&["web"], DISKS);
    assert_eq!(fixture.gone(&report), set(&[]));
    assert!(why(&report).contains("VM `web` is suspended"));
    let report = fixture.clean(&[], DISKS);
    assert!(!fixture.layout.overlay("own").exists());
    for stays in [
        fixture.layout.overlay("web"),
        files.machine_state(),
        files.console_log(),
        fixture.layer(1),
    ] {
        assert!(stays.exists(), "{} {report:?}", stays.display());
    }
}

#[test]
fn one_vm_goes_without_the_others_and_in_the_end_all() {
    let fixture = Fixture::new();
    fixture.file(&fixture.layout.vm("web").host_key());
    fixture.file(&fixture.layout.vm("own").console_log());
    let report = fixture.clean(&["web"], DISKS);
    assert_eq!(fixture.gone(&report), set(&["vms/web", "web-overlay.qcow2"]));
    assert!(fixture.layer(1).exists() && fixture.layout.vm("own").console_log().exists());
    assert!(matches!(
        clean(&["web".into()], DISKS, &fixture.bounds(), fixture.project()),
        Err(VmError::Record(RecordError::Unknown { .. }))
    ));
    fixture.clean(&[], DISKS);
    assert!(!fixture.layout.state_root().exists(), "as if there had never been a VM");
    assert!(fixture.root.path().join("project").is_dir());
    assert_eq!(fixture.clean(&[], DISKS), CleanReport::default());
}

#[test]
fn a_disk_that_another_is_based_on_stays_with_its_vm() {
    let fixture = Fixture::new();
    fixture.disk(&fixture.layout.state_root().join("mine.qcow2"), &fixture.layout.overlay("web"));
    let report = fixture.clean(&[], DISKS);
    assert!(why(&report).contains("another disk is based on"), "{report:?}");
    assert!(fixture.layout.overlay("web").exists() && fixture.layout.vm("web").record().exists());
    assert!(fixture.layer(1).exists() && !fixture.layout.overlay("own").exists());
}

#[test]
fn a_damaged_record_is_quarantined_and_the_disk_stays() {
    let fixture = Fixture::new();
    let record = fixture.layout.vm("web").record();
    fs::write(&record, "{\"format\": 1, ").expect("written");
    let report = fixture.clean(&["web"], DISKS);
    assert!(why(&report).contains("--records quarantines it"), "{report:?}");
    assert!(record.exists() && fixture.layout.overlay("web").exists());
    let report = fixture.clean(&["web"], CleanOptions { records: true, ..ALL });
    assert_eq!(fixture.gone(&report), set(&["quarantine/web-record.1.json"]));
    assert!(!record.exists() && fixture.layout.overlay("web").exists());
    assert_eq!(fs::read(&report.removed[0].path).expect("read"), b"{\"format\": 1, ");
}

#[test]
fn a_second_name_frees_nothing_and_the_last_one_all() {
    let fixture = Fixture::new();
    let elsewhere = fixture.root.path().join("cached");
    fs::hard_link(fixture.image("v2"), &elsewhere).expect("linked");
    let freed = |report: &CleanReport| {
        let image = report.removed.iter().find(|one| one.kind == CleanedKind::Image);
        image.map(|image| image.freed_bytes)
    };
    let dry = CleanOptions { dry_run: true, ..ALL };
    assert_eq!(freed(&fixture.clean(&[], dry)), Some(0));
    // Two names that are both removed count once.
    let second = fixture.image("v2").with_file_name("second");
    fs::remove_file(elsewhere).expect("removed");
    fs::hard_link(fixture.image("v2"), second).expect("linked");
    let planned = freed(&fixture.clean(&[], dry)).expect("goes");
    assert!((8192..16_384).contains(&planned), "{planned}");
    assert_eq!(freed(&fixture.clean(&[], ALL)), Some(planned));
}

#[test]
fn another_process_that_works_on_a_vm_is_waited_for() {
    let fixture = Fixture::new();
    let held = crate::vm::lock::lock("web", fixture.project()).expect("held");
    // The cancellation keeps this from waiting forever.
    fixture.context.cancel.cancel();
    let refused = clean(&[], DISKS, &fixture.bounds(), fixture.project());
    assert!(matches!(refused, Err(VmError::Lock(_))), "{refused:?}");
    assert!(fixture.layout.overlay("web").exists());
    drop(held);
}

#[test]
fn data_disks_stay_until_they_are_named() {
    let fixture = Fixture::new();
    let files = fixture.layout.vm("web");
    let names = ["data", "old"].map(|name| DiskName::try_from(name.to_owned()).expect("a name"));
    for name in &names {
        fixture.file(&files.data_disk(name.as_str()));
        fs::write(files.data_disk(name.as_str()), b"QFI\xfb").expect("written");
    }
    fs::write(files.data_disks().join(".new.qcow2.new"), "").expect("written");
    let mut record = Record::load(&fixture.layout, "web").expect("read").expect("is there");
    let disk = |name: &DiskName| DataDisk { name: name.clone(), size_bytes: 512, guest: None };
    record.data_disks = names.iter().map(disk).collect();
    record.save(&fixture.layout).expect("saved");

    let report = fixture.clean(&["web"], ALL);
    assert_eq!(fixture.gone(&report), set(&["disks/web/.new.qcow2.new"]), "an unfinished one");
    assert_eq!(report.kept, [], "its VM is there");

    let only = CleanOptions { data_disks: DataDisks::Named(&names[1..]), ..ALL };
    let planned = fixture.clean(&["web"], CleanOptions { dry_run: true, ..only });
    let report = fixture.clean(&["web"], only);
    assert_eq!(report, planned);
    assert_eq!(fixture.gone(&report), set(&["disks/web/old.qcow2"]));
    let record = Record::load(&fixture.layout, "web").expect("read").expect("is there");
    assert_eq!(record.data_disks, [disk(&names[0])], "it may be made again");
    let unknown = clean(&[], only, &fixture.bounds(), fixture.project()).expect_err("unknown");
    assert!(unknown.to_string().contains("no disk `old`"), "{unknown}");

    let report = fixture.clean(&[], DISKS);
    assert!(!fixture.gone(&report).iter().any(|path| path.starts_with("disks")));
    assert!(why(&report).contains("castra clean web --data-disk data"), "{}", why(&report));
    assert!(!fixture.layout.overlay("web").exists() && files.data_disk("data").exists());
    // It is all that is left of the VM.
    let report = fixture.clean(&["web"], ALL);
    assert!(report.removed.is_empty() && why(&report).contains("`data`"), "{report:?}");
    let all = CleanOptions { data_disks: DataDisks::All, ..ALL };
    assert_eq!(fixture.gone(&fixture.clean(&[], all)), set(&["disks/web/data.qcow2"]));
    assert!(!fixture.layout.data_disks().exists());
}

#[test]
fn a_link_in_the_place_of_a_data_disk_stays() {
    let fixture = Fixture::new();
    let precious = fixture.root.path().join("precious.qcow2");
    fs::write(&precious, b"QFI\xfb").expect("written");
    let files = fixture.layout.vm("web");
    fs::create_dir_all(files.data_disks()).expect("made");
    std::os::unix::fs::symlink(&precious, files.data_disk("data")).expect("linked");
    let all = CleanOptions { data_disks: DataDisks::All, ..ALL };
    fixture.clean(&["web"], all);
    assert!(precious.exists());
    // Nor does one in the place of their directory lead to others.
    fs::remove_dir_all(files.data_disks()).expect("removed");
    std::os::unix::fs::symlink(fixture.root.path(), files.data_disks()).expect("linked");
    fixture.clean(&["web"], all);
    assert!(precious.exists());
}
