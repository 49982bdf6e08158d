//! The kernel's clocks: reading, stepping and slewing them.

use std::io;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NANOSECONDS: i64 = 1_000_000_000;

/// `ADJ_OFFSET_SINGLESHOT`: the old `adjtime`, which leaves a time service's own settings alone.
const SINGLE_SHOT: u32 = 0x8001;

/// `TIME_ERROR`: no time service keeps the clock.
const UNSYNCHRONISED: i32 = 5;

/// Speed of a slew, in nanoseconds a second (`MAX_TICKADJ` in the kernel).
pub(crate) const SLEW_NS_PER_SEC: i64 = 500_000;

/// Returns the wall clock, nanoseconds since the Unix epoch.
pub(crate) fn wall_ns() -> i64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// Returns the time since the kernel started. Does not advance while the VM is paused, and cannot
/// be set.
pub(crate) fn boot_ns() -> i64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// Sets the wall clock.
pub(crate) fn set_clock(unix_ns: u64) -> io::Result<()> {
    let unix_ns = i64::try_from(unix_ns).map_err(io::Error::other)?;
    let time = Timespec { tv_sec: unix_ns / NANOSECONDS, tv_nsec: unix_ns % NANOSECONDS };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Moves the wall clock at once.
pub(crate) fn step(by_ns: i64) -> io::Result<()> {
    set_clock(u64::try_from(wall_ns().saturating_add(by_ns)).map_err(io::Error::other)?)
}

/// Lets the wall clock run faster or slower until it has gained or lost `by_ns`.
pub(crate) fn slew(by_ns: i64) -> io::Result<()> {
    adjust(SINGLE_SHOT, by_ns / 1000).map(drop)
}

/// Returns `true` if the kernel reports that a time service in the guest keeps the clock.
pub(crate) fn is_kept_by_a_service() -> bool {
    adjust(0, 0).is_ok_and(|state| state != UNSYNCHRONISED)
}

#[expect(unsafe_code, reason = "no library wraps adjtimex")]
fn adjust(modes: u32, offset: i64) -> io::Result<i32> {
    // SAFETY: `timex` is plain numbers, for all of which zero is a value.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    request.modes = modes;
    request.offset = offset;
    // SAFETY: the kernel reads and writes this structure only, for the length of the call.
    let state = unsafe { libc::adjtimex(&raw mut request) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(state) }
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(NANOSECONDS).saturating_add(time.tv_nsec)
}
