//! Named points at which a test may park this process, so that it can be killed there with certainty.
//!
//! Compiled in by the feature `fail-points` only, which the project's own tests switch on; without it [`reach`] is
//! nothing. `CASTRA_PARK_AT` names the point, and `CASTRA_PARK_FILE` a file that is made when it is reached.
//! `file-synced:3` parks at the third visit: a point that a run passes several times is another crash each time.

/// Declares the points by what they belong to, so that none can be forgotten in a list of them.
macro_rules! points {
    ($($(#[$about:meta])* $group:ident { $($(#[$doc:meta])* $point:ident = $name:literal,)+ })+) => {
        /// A point between two steps that a crash must not be able to tell apart.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($($(#[$doc])* $point,)+)+
        }

        impl Point {
            /// All points: the tests kill at each of them.
            pub const ALL: &'static [Self] = &[$($(Self::$point,)+)+];

            $($(#[$about])* pub const $group: &'static [Self] = &[$(Self::$point,)+];)+

            /// The name in `CASTRA_PARK_AT`.
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
        /// The partial is open, and what an earlier attempt left in it is hashed.
        PartialOpened = "partial-opened",
        /// The server has answered, where from is noted, and no byte is written.
        OriginNoted = "origin-noted",
        /// Half of the bytes are written.
        BodyHalf = "body-half",
        /// The last byte is written, and nobody has looked at the digest.
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
        /// It lies in the cache, unverified.
        Collected = "collected",
        /// It is verified, and nothing but it is left.
        CollectedVerified = "collected-verified",
    }
    /// A blob on its way to a finished file.
    TRANSFORM {
        /// There is a directory for what is in the making.
        WorkMade = "work-made",
        /// A step of the pipeline is done.
        StepDone = "step-done",
        /// The finished file is verified, and not published.
        ProductVerified = "product-verified",
    }
    /// A file on its way to its final name, and the words about it in a manifest.
    PUBLISH {
        /// A file is on the disk under its temporary name.
        FileSynced = "file-synced",
        /// A file has its final name, and its directory is not on the disk.
        FileRenamed = "file-renamed",
        /// A finished file has its name in the cache, and no manifest says so.
        ProductPublished = "product-published",
        /// The cache's manifest knows of the file.
        ProductRecorded = "product-recorded",
        /// A cached file has a second, temporary name in the project.
        LinkMade = "link-made",
        /// A file has its name in the project, and no manifest says so.
        FileShared = "file-shared",
        /// All files are in the project, and no manifest says so.
        ImageShared = "image-shared",
        /// The project's manifest says so.
        ImageRecorded = "image-recorded",
    }
    /// A VM's own disk.
    OVERLAY {
        /// There is an empty file under the disk's temporary name.
        OverlayBegun = "overlay-begun",
        /// The disk is made, under its temporary name.
        OverlayMade = "overlay-made",
        /// The disk has its name, and no record says so.
        OverlayPublished = "overlay-published",
        /// A small file, such as a record or a manifest, is written under its temporary name.
        StateWritten = "state-written",
        /// The record says so.
        OverlayRecorded = "overlay-recorded",
    }
    /// A VM that boots.
    BOOT {
        /// Its record says that it starts, and there is no QEMU yet.
        BootRecorded = "boot-recorded",
        /// QEMU runs, and nobody has told the guest who it is.
        BootLaunched = "boot-launched",
        /// The guest is ready, and no record says so.
        BootReady = "boot-ready",
    }
    /// A VM that is being stopped.
    DOWN {
        /// Its record says so, and nobody has been asked.
        DownRecorded = "down-recorded",
        /// QEMU has ended, and what it used is still there.
        DownEnded = "down-ended",
        /// Nothing of its run is left but what the record says.
        DownCleaned = "down-cleaned",
    }
    /// A warm template in the making.
    BAKE {
        /// Its guest boots.
        BakeBooting = "bake-booting",
        /// The guest is at rest, and not stopped yet.
        BakeAtRest = "bake-at-rest",
        /// Its state is saved, and QEMU has ended.
        BakeSaved = "bake-saved",
        /// The template has its name, and no manifest says so.
        BakePublished = "bake-published",
    }
    /// A VM that goes on from a template.
    RESTORE {
        /// Its record says that it starts, and there is no QEMU yet.
        RestoreRecorded = "restore-recorded",
        /// QEMU waits for the state.
        RestoreGreeted = "restore-greeted",
        /// The machine runs, and nobody has told it who it is.
        RestoreLoaded = "restore-loaded",
        /// It has its personality, and no record says so.
        RestoreAwake = "restore-awake",
    }
    /// A VM that is being suspended.
    SUSPEND {
        /// It stands still, and nothing is saved.
        SuspendStopped = "suspend-stopped",
        /// Its state is saved, under a temporary name.
        SuspendSaved = "suspend-saved",
        /// The state has its name, and no record says so.
        SuspendPublished = "suspend-published",
        /// The record says that the VM is suspended, and its QEMU still lives.
        SuspendRecorded = "suspend-recorded",
    }
    /// A suspended VM that goes on.
    RESUME {
        /// Its state is loaded, and it stands still.
        ResumeLoaded = "resume-loaded",
        /// The state counts no more, and the VM still stands still.
        ResumeRecorded = "resume-recorded",
    }
    /// A VM that is being cloned.
    CLONE {
        /// The clone is recorded as being made.
        CloneBegun = "clone-begun",
        /// The cloned VM is on a new overlay, and the clone has none.
        CloneFrozen = "clone-frozen",
    }
}

/// How long a process stays parked if nobody kills it, in seconds: no test takes as long.
#[cfg(feature = "fail-points")]
const PARKED_SECS: u64 = 300;

/// Parks for good if this is the point that was asked for.
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
        // A test that cannot see it gives up by itself.
        let _ = std::fs::write(file, point.name());
    }
    // Not `park`, which may return early.
    std::thread::sleep(std::time::Duration::from_secs(PARKED_SECS));
    std::process::abort();
}

/// Nothing, without the feature `fail-points`.
#[cfg(not(feature = "fail-points"))]
pub fn reach(_point: Point) {}
