//! One real VM's life as programs see it: a document per command and a line per event, all
//! following the schema.

use castra_test_support::Project;
use serde_json::Value;

const VM: &str = "alpine-minimal";

#[test]
fn a_vms_life_as_json() {
    let project = Project::new();
    project.run(&["up"]).ok();
    project.run(&["down"]).ok();
    started(&project);
    commands(&project);
    let copies =
        project.run(&["cp", "--json", "/etc/hostname", ":/root/there"]).ok().document("cp");
    assert!(copies["copies"][0]["bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    let hosts = project.run(&["ssh-config", "--json"]).ok().document("ssh-config");
    assert_eq!(
        (&hosts["hosts"][0]["vm"], &hosts["hosts"][0]["address"]),
        (&VM.into(), &"127.0.0.1".into())
    );
    suspended_and_cloned(&project);
    project.run(&["up", VM, "--json"]).ok().document("up");
    let down = project.run(&["down", "--json", VM]).ok().document("down");
    assert_eq!(
        (&down["vms"][0]["state"], &down["vms"][0]["changed"]),
        (&"stopped".into(), &true.into())
    );
    let down = project.run(&["down", "--json", VM]).ok().document("down");
    assert_eq!(down["vms"][0]["changed"], false);
}

fn started(project: &Project) {
    let ended = project.run(&["up", "--json"]).ok();
    let up = ended.document("up");
    assert_eq!((&up["vms"][0]["name"], &up["vms"][0]["changed"]), (&VM.into(), &true.into()));
    let names: Vec<Value> =
        ended.events().into_iter().map(|mut line| line["event"].take()).collect();
    for event in ["accelerator-chosen", "vm-starting", "vm-phase", "vm-running"] {
        assert!(names.iter().any(|name| name == event), "no {event} in {names:?}");
    }
    assert_eq!(project.run(&["up", "--json"]).ok().document("up")["vms"][0]["changed"], false);
    assert_eq!(project.run(&["up", "--json", "--quiet"]).ok().events(), Vec::<Value>::new());
    let status = project.run(&["status", "--json"]).ok().document("status");
    let vm = &status["vms"][0];
    assert_eq!(vm["state"], "running");
    for known in
        ["pid", "qemu_version", "started_unix_ms", "ssh_port", "cpus", "memory_mib", "ready_ms"]
    {
        assert!(!vm[known].is_null(), "{known} is not reported: {vm:#}");
    }
    assert!(vm["accelerator"]["reason"].is_string());
}

fn commands(project: &Project) {
    let script = "cat; printf 'out\\n'; printf '\\377' >&2; exit 3";
    let ended =
        project.run_with_input(&["exec", "--json", "--", "sh", "-c", script], b"in\n").code(3);
    let document = ended.document("exec");
    assert_eq!(
        (&document["stdout"], &document["stderr_base64"]),
        (&"in\nout\n".into(), &"/w==".into())
    );
    assert_eq!((&document["exit_code"], &document["timed_out"]), (&3.into(), &false.into()));
    project.run(&["exec", "--json", "--tty", "--", "true"]).code(64).says("has no JSON output");
    let document = project
        .run(&["run", "--json", "--timeout", "60", "--", "uname", "-s"])
        .ok()
        .document("run");
    assert_eq!(document["stdout"], "Linux\n");
}

fn suspended_and_cloned(project: &Project) {
    let suspended = project.run(&["suspend", "--json"]).ok().document("suspend");
    assert_eq!(suspended["vms"][0]["state"], "suspended");
    let cloned = project.run(&["clone", "--json", VM, "twin"]).ok().document("clone");
    assert_eq!(
        (&cloned["vms"][0]["name"], &cloned["vms"][0]["state"]),
        (&"twin".into(), &"suspended".into())
    );
    let error = project.run(&["clone", "--json", VM, "twin"]).code(73);
    assert_eq!(error.events().last().expect("a line")["error"]["kind"], "cannot-create");
}
