//! `kill -9` at every named point: the next run succeeds by itself, ends with the same bytes, and
//! leaves nothing behind.
//!
//! A point that a run passes several times is a different crash each time, so each visit has its
//! own kill.

mod lives;

use castra_engine::failpoint::Point;

/// Groups of points, by the tests that kill at each of them.
const TRIED: [(&str, &[&[Point]]); 5] = [
    ("tests/faults/kill/lives.rs", &[Point::BOOT, Point::DOWN]),
    (
        "tests/it/images/kills.rs",
        &[Point::DOWNLOAD, Point::COLLECT, Point::TRANSFORM, Point::PUBLISH],
    ),
    ("tests/vm/kill/", &[Point::OVERLAY, Point::BAKE, Point::RESTORE]),
    ("tests/vm/provision.rs", &[Point::STEP]),
    (
        "tests/vm/suspend.rs, tests/faults/lifecycle/data_disks.rs",
        &[Point::SUSPEND, Point::RESUME, Point::CLONE],
    ),
];

#[test]
fn no_point_is_left_out() {
    let tried: Vec<Point> = TRIED.iter().flat_map(|(_, groups)| groups.concat()).collect();
    let missing: Vec<&Point> = Point::ALL.iter().filter(|point| !tried.contains(point)).collect();
    assert!(missing.is_empty(), "no test kills at {missing:?}");
}
