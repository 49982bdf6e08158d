//! `kill -9` at every named point: the next run succeeds by itself, ends with the same bytes, and leaves nothing behind.
//!
//! A point that a run passes several times is another crash each time, so each visit has its own kill.

#[allow(dead_code, reason = "made for the tests of lives; this one uses a part")]
#[path = "../support/fake.rs"]
mod fake;
#[allow(dead_code, reason = "made for the tests of images; this one uses a part")]
#[path = "../images/fixture.rs"]
mod fixture;
#[allow(dead_code, reason = "made for the tests of images; this one uses a part")]
#[path = "../support/http.rs"]
mod http;
mod images;
mod lives;
mod parked;
#[path = "../support/mod.rs"]
mod support;
mod tree;
#[allow(dead_code, reason = "made for the tests of images; this one uses a part")]
#[path = "../images/vhd.rs"]
mod vhd;
mod vms;
mod warm;
#[allow(dead_code, reason = "made for the tests of images; this one uses a part")]
#[path = "../images/wheels.rs"]
mod wheels;

use castra::failpoint::Point;

/// The groups that the tests of this binary go through.
const TRIED: [&[Point]; 9] = [
    Point::BOOT,
    Point::DOWN,
    Point::DOWNLOAD,
    Point::COLLECT,
    Point::TRANSFORM,
    Point::PUBLISH,
    Point::OVERLAY,
    Point::BAKE,
    Point::RESTORE,
];

/// The groups that other tests of real VMs go through: `tests/vm_suspend.rs`.
const TRIED_ELSEWHERE: [&[Point]; 3] = [Point::SUSPEND, Point::RESUME, Point::CLONE];

#[test]
fn no_point_is_left_out() {
    let tried: Vec<Point> = [TRIED.concat(), TRIED_ELSEWHERE.concat()].concat();
    let missing: Vec<&Point> = Point::ALL.iter().filter(|point| !tried.contains(point)).collect();
    assert!(missing.is_empty(), "nobody kills at {missing:?}");
}
