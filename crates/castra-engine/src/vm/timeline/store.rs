//! Timelines of a VM's recent starts, one file each, in the VM's own directory.
//!
//! Timelines are for people, and nothing relies on them: what cannot be written is left out, and
//! what cannot be read is skipped. So nothing waits for the disk either.

use std::fs;
use std::io::Read as _;

use crate::files;
use crate::layout::VmLayout;
use crate::trusted;

use super::{StartResult, Stopwatch, Timeline};

/// Timelines that are kept.
const KEPT: usize = 20;

/// Most bytes of a timeline; a longer file is not one of Castra's.
const MAX_BYTES: u64 = 64 * 1024;

/// Saves a timeline, replacing that of the same start, and removes the oldest. The caller holds the
/// VM's lock.
pub(in crate::vm) fn save(timeline: &Timeline, vm: &VmLayout) {
    let Ok(text) = serde_json::to_vec(timeline) else { return };
    let written = files::create_private_directory(&vm.boots())
        .and_then(|()| files::write_lazily(&vm.boot(timeline.qemu_unix_ms), &text, 0o600));
    if written.is_ok() {
        let starts = starts(vm);
        for start in starts.iter().skip(KEPT) {
            // The next start tries again.
            let _ = fs::remove_file(vm.boot(*start));
        }
        if starts.len() >= KEPT {
            // Seldom enough to cost nothing: removes what a castra left that was killed while it
            // wrote.
            let _ = files::remove_leftovers(&vm.boots());
        }
    }
}

/// Saves what a stopwatch has learnt of a start since it was saved, if anything.
pub(in crate::vm) fn save_if_new(
    stopwatch: &Stopwatch,
    kept: Timeline,
    is_ready: bool,
    vm: &VmLayout,
) {
    let mut timeline = stopwatch.timeline(kept.clone());
    if is_ready && timeline.result == StartResult::Started {
        timeline.result = StartResult::Ready;
    }
    if timeline != kept {
        save(&timeline, vm);
    }
}

/// Returns the saved timelines of a VM, the newest first.
pub(in crate::vm) fn timelines(vm: &VmLayout) -> Vec<Timeline> {
    starts(vm).into_iter().filter_map(|start| read(vm, start)).collect()
}

/// Returns the timeline of the start in the VM's record.
pub(in crate::vm) fn find(vm: &VmLayout, qemu_unix_ms: u64) -> Option<Timeline> {
    read(vm, qemu_unix_ms)
}

fn read(vm: &VmLayout, start: u64) -> Option<Timeline> {
    let mut text = Vec::new();
    trusted::open(&vm.boot(start)).ok()?.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    let timeline: Timeline = serde_json::from_slice(&text).ok()?;
    let is_in_order = timeline.phases.is_sorted_by_key(|span| span.start_ms);
    (is_in_order && timeline.qemu_unix_ms == start).then_some(timeline)
}

/// Returns the times of the saved starts, the newest first.
fn starts(vm: &VmLayout) -> Vec<u64> {
    let entries = fs::read_dir(vm.boots()).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| VmLayout::start_of_boot(entry.file_name().to_str()?);
    let mut starts: Vec<u64> = entries.filter_map(name).collect();
    starts.sort_unstable_by(|one, other| other.cmp(one));
    starts
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use crate::layout::ProjectLayout;
    use crate::vm::timeline::{Phase, tests::boot};

    use super::*;

    #[test]
    fn the_last_ones_are_kept_for_this_user_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let vm = ProjectLayout::unchecked(directory.path().to_owned()).vm("web");
        for start in 1..=25 {
            save(&boot(start * 1000, &[(Phase::Kernel, start)]), &vm);
        }
        let kept = timelines(&vm);
        let starts: Vec<u64> =
            kept.iter().map(|timeline| timeline.started_unix_ms / 1000).collect();
        assert_eq!(starts, (6..=25).rev().collect::<Vec<_>>());
        assert_eq!(find(&vm, kept[0].qemu_unix_ms).as_ref(), kept.first());
        let mode =
            fs::metadata(vm.boot(kept[0].qemu_unix_ms)).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_damaged_is_passed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let vm = ProjectLayout::unchecked(directory.path().to_owned()).vm("web");
        assert_eq!(timelines(&vm), []);
        for start in [1, 2, 3, 4] {
            save(&boot(start, &[(Phase::Qemu, 5), (Phase::Kernel, start * 10)]), &vm);
        }
        let whole = fs::read(vm.boot(11)).expect("reads");
        fs::write(vm.boot(11), &whole[..whole.len() / 2]).expect("cut");
        fs::write(vm.boot(12), "").expect("emptied");
        fs::write(vm.boot(13), fs::read(vm.boot(14)).expect("reads"))
            .expect("under another's name");
        fs::write(vm.boots().join("notes.txt"), "mine").expect("written");
        fs::create_dir(vm.boot(99)).expect("a directory");
        let left: Vec<u64> =
            timelines(&vm).iter().map(|timeline| timeline.started_unix_ms).collect();
        assert_eq!(left, [4]);
    }
}
