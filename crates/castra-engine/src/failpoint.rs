//! Named points at which a test may park this process, so that it can be killed there with
//! certainty.
//!
//! Compiled in only by the feature `fail-points`, which the project's own tests enable; without it
//! [`reach`] does nothing. `CASTRA_PARK_AT` names the point, and `CASTRA_PARK_FILE` a file that is
//! created when it is reached. `file-synced:3` parks at the third visit: a point that a run passes
//! several times is another crash each time.

/// Declares the points by topic, so that none can be missing from a list of them.
macro_rules! points {
    ($($(#[$about:meta])* $group:ident { $($(#[$doc:meta])* $point:ident = $name:literal,)+ })+) => {
        /// A point between two steps that a crash must not be able to distinguish.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($($(#[$doc])* $point,)+)+
        }

        impl Point {
            /// All points: the tests kill at each of them.
            pub const ALL: &'static [Self] = &[$($(Self::$point,)+)+];

            $($(#[$about])* pub const $group: &'static [Self] = &[$(Self::$point,)+];)+

            /// Returns the name in `CASTRA_PARK_AT`.
            pub fn name(self) -> &'static str {
                match self {
                    $($(Self::$point => $name,)+)+
                }
            }
        }
    };
}

points! {
    /// A file on its way from a server to a verified blob, in this order.
    DOWNLOAD {
        /// The partial is open, and the bytes of an earlier attempt are hashed.
        PartialOpened = "partial-opened",
        /// The server has answered and its URL is recorded, and no byte is written.
        OriginNoted = "origin-noted",
        /// Half of the bytes are written.
        BodyHalf = "body-half",
        /// The last byte is written, and the digest is not checked yet.
        BodyWhole = "body-whole",
        /// The digest is right, and the partial still has its name.
        BodyVerified = "body-verified",
        /// The sidecar is gone, and the partial still has its name.
        SidecarRemoved = "sidecar-removed",
        /// The blob has its name.
        BlobPublished = "blob-published",
    }
    /// A file that comes from pip or from this machine.
    COLLECT {
        /// The file is in the cache, unverified.
        Collected = "collected",
        /// The file is verified, and everything else is removed.
        CollectedVerified = "collected-verified",
    }
    /// A blob on its way to a finished file.
    TRANSFORM {
        /// The work directory exists.
        WorkMade = "work-made",
        /// A step of the pipeline is done.
        StepDone = "step-done",
        /// The finished file is verified, and not published.
        ProductVerified = "product-verified",
    }
    /// A file on its way to its final name, and its entry in a manifest.
    PUBLISH {
        /// A file is on the disk under its temporary name.
        FileSynced = "file-synced",
        /// A file has its final name, and its directory is not on the disk.
        FileRenamed = "file-renamed",
        /// A finished file has its name in the cache, and no manifest lists it.
        ProductPublished = "product-published",
        /// The cache's manifest lists the file.
        ProductRecorded = "product-recorded",
        /// A cached file has a second, temporary name in the project.
        LinkMade = "link-made",
        /// A file has its name in the project, and no manifest lists it.
        FileShared = "file-shared",
        /// All files are in the project, and no manifest lists them.
        ImageShared = "image-shared",
        /// The project's manifest lists them.
        ImageRecorded = "image-recorded",
    }
    /// A VM's own disk.
    OVERLAY {
        /// There is an empty file under the disk's temporary name.
        OverlayBegun = "overlay-begun",
        /// The disk is made, under its temporary name.
        OverlayMade = "overlay-made",
        /// The disk has its name, and no record mentions it.
        OverlayPublished = "overlay-published",
        /// A small file, such as a record or a manifest, is written under its temporary name.
        StateWritten = "state-written",
        /// A small file has its final name, and its directory is not on the disk.
        StateRenamed = "state-renamed",
        /// The record mentions the disk.
        OverlayRecorded = "overlay-recorded",
    }
    /// A VM that boots.
    BOOT {
        /// The record says that the VM starts, and there is no QEMU yet.
        BootRecorded = "boot-recorded",
        /// QEMU runs, and the guest has no personality yet.
        BootLaunched = "boot-launched",
        /// The guest is ready, and the record does not say so yet.
        BootReady = "boot-ready",
    }
    /// A VM that is being stopped.
    DOWN {
        /// The record says so, and no process has been asked to stop.
        DownRecorded = "down-recorded",
        /// QEMU has ended, and its files still exist.
        DownEnded = "down-ended",
        /// The record is all that is left of the run.
        DownCleaned = "down-cleaned",
    }
    /// A warm template in the making.
    BAKE {
        /// The guest boots.
        BakeBooting = "bake-booting",
        /// The guest is at rest, and not stopped yet.
        BakeAtRest = "bake-at-rest",
        /// The state is saved, and QEMU has ended.
        BakeSaved = "bake-saved",
        /// The template has its name, and no manifest describes it.
        BakePublished = "bake-published",
    }
    /// A layer of a provisioned disk in the making.
    STEP {
        /// The guest boots.
        StepBooting = "step-booting",
        /// The step runs or has run.
        StepRun = "step-run",
        /// The guest has shut down.
        StepEnded = "step-ended",
        /// The layer has its name, and no manifest describes it.
        StepPublished = "step-published",
    }
    /// A VM that is restored from a template.
    RESTORE {
        /// The record says that the VM starts, and there is no QEMU yet.
        RestoreRecorded = "restore-recorded",
        /// QEMU waits for the state.
        RestoreGreeted = "restore-greeted",
        /// The machine runs, and the guest has no personality yet.
        RestoreLoaded = "restore-loaded",
        /// The guest has its personality, and the record does not say so yet.
        RestoreAwake = "restore-awake",
    }
    /// A VM that is being suspended.
    SUSPEND {
        /// The machine is paused, and nothing is saved.
        SuspendStopped = "suspend-stopped",
        /// The state is saved, under a temporary name.
        SuspendSaved = "suspend-saved",
        /// The state has its name, and the record does not mention it yet.
        SuspendPublished = "suspend-published",
        /// The record says that the VM is suspended, and its QEMU still lives.
        SuspendRecorded = "suspend-recorded",
    }
    /// A suspended VM that resumes.
    RESUME {
        /// The state is loaded, and the machine is paused.
        ResumeLoaded = "resume-loaded",
        /// The state is no longer valid, and the machine is still paused.
        ResumeRecorded = "resume-recorded",
    }
    /// A VM that is being cloned.
    CLONE {
        /// The clone is recorded as being made.
        CloneBegun = "clone-begun",
        /// The cloned VM is on a new overlay, and the clone has none.
        CloneFrozen = "clone-frozen",
        /// A data disk of a clone is copied, and has no name yet.
        CloneDataCopied = "clone-data-copied",
    }
}

/// Time for which a process stays parked if it is not killed, in seconds: no test takes as long.
#[cfg(feature = "fail-points")]
const PARKED_SECS: u64 = 300;

/// Parks forever if `CASTRA_PARK_AT` names this point.
#[cfg(feature = "fail-points")]
pub fn reach(point: Point) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static VISITS: AtomicUsize = AtomicUsize::new(0);

    let Ok(wanted) = std::env::var("CASTRA_PARK_AT") else {
        return;
    };
    let (name, visit) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if name != point.name() || (VISITS.fetch_add(1, Ordering::Relaxed) + 1).to_string() != visit {
        return;
    }
    if let Some(file) = std::env::var_os("CASTRA_PARK_FILE") {
        // A test that waits for the file gives up by itself if it cannot be written.
        let _ = std::fs::write(file, point.name());
    }
    // Not `park`, which may return early.
    std::thread::sleep(std::time::Duration::from_secs(PARKED_SECS));
    std::process::abort();
}

/// Does nothing without the feature `fail-points`.
#[cfg(not(feature = "fail-points"))]
pub fn reach(_point: Point) {}
