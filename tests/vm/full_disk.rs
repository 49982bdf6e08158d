//! Real VMs on a filesystem that fills up while they run: they are paused, and nothing is lost.

#![cfg(target_os = "linux")]

use castra_test_support::Project;
use castra_test_support::namespace::run_script;

/// Commands as a person would type them. The guest writes more than there is space for, with a
/// digest of what it meant to write.
const FILLED: &str = r#"
mount -t tmpfs -o size=700m tmpfs . && cd "$PWD" || exit 99
state() { castra status --json | sed -n 's/.*"state": "\(.*\)".*/\1/p'; }
try() { castra "$@"; echo "$1: code $?, $(state)"; }
fill() {
    free=$(df -Pk . | awk 'END { print $4 }')
    head -c $(((free - 12000) * 1024)) /dev/zero > fill
}
write='head -c 40000000 /dev/urandom | tee /root/big | sha256sum > /root/sum; sync
    echo written > /root/done'
castra up -q || exit 1
fill
castra exec -- sh -c "($write) </dev/null >/dev/null 2>&1 &" || exit 2
tries=0
until [ "$(state)" = disk-full ]; do
    tries=$((tries + 1)); [ $tries -lt 300 ] || exit 3
    sleep 1
done
castra status --json | grep -E '"(filesystem"|(free|growth)_bytes": [0-9])'
castra status
castra list
castra doctor --json | grep 'is paused'
try exec -- true
try up
try suspend
try down
rm fill
tries=0
until castra exec -- test -e /root/done; do
    tries=$((tries + 1)); [ $tries -lt 300 ] || exit 4
    sleep 1
done
echo "after room: $(state)"
castra down -q && castra up -q || exit 5
castra exec -- sh -c 'sha256sum < /root/big | cmp - /root/sum && echo "the same after a stop"'
castra down -q
"#;

#[test]
fn a_vm_without_room_is_paused_and_continues_with_nothing_lost() {
    let project = Project::new();
    let Some(ended) = run_script(FILLED, &[], &project) else { return };
    let ended = ended.ok().says("Nothing is lost").says("there is room again");
    let text = ended.text();
    let place = project.path().canonicalize().expect("is there");
    for line in [
        &format!("\"filesystem\": \"{}\"", place.display()),
        "exec: code 255, disk-full\n",
        "up: code 74, disk-full\n",
        "suspend: code 74, disk-full\n",
        "down: code 74, disk-full\n",
        "is paused",
        "\"growth_bytes\": ",
        "after room: running\n",
        "the same after a stop\n",
    ] {
        assert!(text.contains(line), "{line}: {text}{}", ended.stderr);
    }
}

/// Script in which the disk is full while a VM boots for the first time: the boot continues once
/// there is space.
const FULL_AT_BOOT: &str = r#"
mount -t tmpfs -o size=700m tmpfs . && cd "$PWD" || exit 99
castra up --cold --no-wait || exit 1
head -c 700m /dev/zero > fill
castra up
echo "up: code $?"
castra down --force -q && rm fill && castra up -q && castra exec -- echo alive
castra down -q
"#;

#[test]
fn a_boot_without_room_is_not_blamed_on_the_guest() {
    let project = Project::new();
    let Some(ended) = run_script(FULL_AT_BOOT, &[], &project) else { return };
    let ended = ended.ok().says("is paused").says("is full");
    let text = ended.text();
    assert!(text.contains("up: code 74\n") && text.contains("alive\n"), "{text}{}", ended.stderr);
}

/// Script in which the disk fills up under a throwaway VM, which no other command could continue.
const FULL_IN_A_RUN: &str = r#"
runs=$XDG_CACHE_HOME/castra/runs
mkdir -p -m 700 "$runs" && mount -t tmpfs -o size=900m,mode=700 tmpfs "$runs" || exit 99
castra run -- true || exit 1
free=$(df -Pk "$runs" | awk 'END { print $4 }')
head -c $(((free - 12000) * 1024)) /dev/zero > "$runs/fill"
write='head -c 40000000 /dev/urandom | tee /root/big | sha256sum > /root/sum; sync
    sha256sum < /root/big | cmp - /root/sum && echo "the same"'
castra run -- sh -c "$write" 2> said &
tries=0
until grep -q 'is paused' said; do
    tries=$((tries + 1)); [ $tries -lt 300 ] || { cat said >&2; exit 2; }
    sleep 0.2
done
rm "$runs/fill"
wait $!
echo "run: code $?"
cat said >&2
"#;

#[test]
fn a_run_without_room_waits_for_it() {
    let project = Project::new();
    let Some(ended) = run_script(FULL_IN_A_RUN, &[], &project) else { return };
    let ended = ended.ok().says("there is room again");
    let text = ended.text();
    assert!(
        text.contains("the same\n") && text.contains("run: code 0\n"),
        "{text}{}",
        ended.stderr
    );
}
