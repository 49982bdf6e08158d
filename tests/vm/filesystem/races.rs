//! Promises to several programs that work in one directory at once.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Programs at once.
const PROGRAMS: usize = 6;

/// Rounds of each.
const ROUNDS: usize = 60;

/// A race, and its name.
type Race = (&'static str, fn(&Path));

const RACES: [Race; 4] = [
    ("appends", appends),
    ("exclusive creation", exclusive_creation),
    ("replacement", replacement),
    ("renames", renames),
];

/// Runs all races, each in a directory of its own.
#[expect(clippy::print_stdout, reason = "a failure is the last one")]
pub(super) fn run(directory: &Path) {
    for (name, race) in RACES {
        println!("{name}, by {PROGRAMS} at once");
        let own = directory.join(format!("race-{}", name.replace(' ', "-")));
        fs::create_dir(&own).expect("a directory");
        race(&own);
        fs::remove_dir_all(&own).expect("all removed");
    }
}

fn at_once(work: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for program in 0..PROGRAMS {
            let work = &work;
            scope.spawn(move || work(program));
        }
    });
}

/// No line is lost or torn.
fn appends(at: &Path) {
    let path = at.join("log");
    at_once(|program| {
        let mut log = OpenOptions::new().append(true).create(true).open(&path).expect("opened");
        for round in 0..ROUNDS {
            let line = format!("{program} {round} {}\n", "x".repeat(program * 100));
            log.write_all(line.as_bytes()).expect("written");
        }
    });
    let log = fs::read_to_string(&path).expect("read");
    let lines: BTreeSet<&str> = log.lines().collect();
    assert_eq!((log.lines().count(), lines.len()), (PROGRAMS * ROUNDS, PROGRAMS * ROUNDS));
    let is_whole = |line: &&str| {
        let words: Vec<&str> = line.split(' ').collect();
        words.len() == 3 && words[0].parse() == Ok(words[2].len() / 100)
    };
    assert!(lines.iter().all(is_whole));
}

/// Of several that create a file, one does.
fn exclusive_creation(at: &Path) {
    let won: Vec<AtomicBool> = (0..ROUNDS).map(|_| AtomicBool::new(false)).collect();
    at_once(|_| {
        for (round, won) in won.iter().enumerate() {
            match File::create_new(at.join(round.to_string())) {
                Ok(_) => assert!(!won.swap(true, Ordering::SeqCst), "two have made {round}"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AlreadyExists),
            }
        }
    });
    assert!(won.iter().all(|won| won.load(Ordering::SeqCst)));
}

/// A file that is replaced by renames is there at each moment, and whole.
fn replacement(at: &Path) {
    let path = at.join("file");
    let version = |program: usize| format!("{program}").repeat(5000);
    fs::write(&path, version(0)).expect("written");
    at_once(|program| {
        for round in 0..ROUNDS {
            if program % 2 == 0 {
                let new = at.join(format!("new-{program}-{round}"));
                fs::write(&new, version(program)).expect("written");
                fs::rename(&new, &path).expect("renamed");
            } else {
                let found = fs::read_to_string(&path).expect("always there");
                assert!((0..PROGRAMS).any(|program| found == version(program)), "torn");
            }
        }
    });
    assert_eq!(fs::read_dir(at).expect("listed").count(), 1);
}

/// A file that several rename has one name.
fn renames(at: &Path) {
    for place in 0..PROGRAMS {
        fs::create_dir(at.join(place.to_string())).expect("made");
    }
    fs::write(at.join("0/file"), "the only one").expect("written");
    at_once(|program| {
        for round in 0..ROUNDS {
            for from in 0..PROGRAMS {
                let to = at.join(format!("{}/file", (program + round) % PROGRAMS));
                match fs::rename(at.join(format!("{from}/file")), to) {
                    Ok(()) => {}
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
                }
            }
        }
    });
    let files =
        (0..PROGRAMS).filter_map(|place| fs::read_to_string(at.join(format!("{place}/file"))).ok());
    assert_eq!(files.collect::<Vec<_>>(), ["the only one"]);
}
