//! Operations on several VMs in parallel.

use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};

use super::error::VmError;

/// Outcomes of an operation on several VMs, by name.
pub type PerVm<T> = Vec<(String, Result<T, VmError>)>;

/// Runs `work` on each item in a thread of its own. Returns the outcomes under the items' names, in
/// their order; a panic in one of them is raised again in the caller.
pub(super) fn side_by_side<I: Sync, T: Send>(
    items: &[I],
    name: impl Fn(&I) -> &str,
    work: impl Fn(&I) -> Result<T, VmError> + Sync,
) -> PerVm<T> {
    thread::scope(|scope| {
        let work = &work;
        let start = |item| (name(item).to_owned(), scope.spawn(move || work(item)));
        let workers: Vec<_> = items.iter().map(start).collect();
        let join = |(vm, worker): (String, ScopedJoinHandle<'_, _>)| {
            (vm, worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
        };
        workers.into_iter().map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::vm::record::RecordError;

    #[test]
    fn all_run_at_once_and_one_that_fails_fails_alone() {
        let together = Barrier::new(3);
        let done = side_by_side(
            &["a", "b", "c"],
            |vm| vm,
            |vm| {
                together.wait();
                if *vm == "b" { Err(RecordError::NoneYet.into()) } else { Ok(vm.len()) }
            },
        );
        let names: Vec<&str> = done.iter().map(|(vm, _)| vm.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(
            done.iter().map(|(_, done)| done.is_ok()).collect::<Vec<_>>(),
            [true, false, true]
        );
    }
}
