//! Named points at which a test may park this process, so that it can be killed there with certainty.
//!
//! Compiled in by the feature `fail-points` only, which the project's own tests switch on; without it [`reach`] is
//! nothing. `CASTRA_PARK_AT` names the point, and `CASTRA_PARK_FILE` a file that is made when it is reached.

/// A point between two steps that a crash must not be able to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// An image's overlay is made, under its temporary name.
    OverlayMade,
    /// A VM's overlay has its name, and no record says so yet.
    OverlayPublished,
    /// A template's guest boots.
    BakeBooting,
    /// It is at rest, and not stopped yet.
    BakeAtRest,
    /// Its state is saved, and QEMU has ended.
    BakeSaved,
    /// The template has its name, and no manifest yet.
    BakePublished,
    /// A VM that is to be suspended stands still, and nothing is saved.
    SuspendStopped,
    /// Its state is saved, under a temporary name.
    SuspendSaved,
    /// The state has its name, and no record says so yet.
    SuspendPublished,
    /// The record says that the VM is suspended, and its QEMU still lives.
    SuspendRecorded,
    /// A suspended VM's state is loaded, and the VM stands still.
    ResumeLoaded,
    /// The state counts no more, and the VM still stands still.
    ResumeRecorded,
    /// A clone is recorded as being made.
    CloneBegun,
    /// The cloned VM is on a new overlay, and the clone has none yet.
    CloneFrozen,
}

impl Point {
    /// All points: the tests kill at each of them.
    pub const ALL: [Self; 14] = [
        Self::OverlayMade,
        Self::OverlayPublished,
        Self::BakeBooting,
        Self::BakeAtRest,
        Self::BakeSaved,
        Self::BakePublished,
        Self::SuspendStopped,
        Self::SuspendSaved,
        Self::SuspendPublished,
        Self::SuspendRecorded,
        Self::ResumeLoaded,
        Self::ResumeRecorded,
        Self::CloneBegun,
        Self::CloneFrozen,
    ];

    /// The name in `CASTRA_PARK_AT`.
    pub fn name(self) -> &'static str {
        match self {
            Self::OverlayMade => "overlay-made",
            Self::OverlayPublished => "overlay-published",
            Self::BakeBooting => "bake-booting",
            Self::BakeAtRest => "bake-at-rest",
            Self::BakeSaved => "bake-saved",
            Self::BakePublished => "bake-published",
            Self::SuspendStopped => "suspend-stopped",
            Self::SuspendSaved => "suspend-saved",
            Self::SuspendPublished => "suspend-published",
            Self::SuspendRecorded => "suspend-recorded",
            Self::ResumeLoaded => "resume-loaded",
            Self::ResumeRecorded => "resume-recorded",
            Self::CloneBegun => "clone-begun",
            Self::CloneFrozen => "clone-frozen",
        }
    }
}

/// Parks for good if this is the point that was asked for.
#[cfg(feature = "fail-points")]
pub fn reach(point: Point) {
    let is_asked_for = std::env::var_os("CASTRA_PARK_AT").is_some_and(|name| name == point.name());
    if !is_asked_for {
        return;
    }
    if let Some(file) = std::env::var_os("CASTRA_PARK_FILE") {
        // A test that cannot see it gives up by itself.
        let _ = std::fs::write(file, point.name());
    }
    loop {
        std::thread::park();
    }
}

/// Nothing, without the feature `fail-points`.
#[cfg(not(feature = "fail-points"))]
pub fn reach(_point: Point) {}
