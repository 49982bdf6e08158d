//! An agent that is killed, stopped or gone, in one real VM.

use std::time::{Duration, Instant};

use castra_test_support::{Ended, Project, eventually};
use serde_json::Value;

/// Time in which a command notices that it is lost, which once took a minute.
const LOSS_LIMIT: Duration = Duration::from_secs(30);

/// Prints the pids of the agent's supervisor and of the agent.
const AGENTS: &str = "\
    for process in /proc/[0-9]*; do
        case $(tr '\\0' ' ' <$process/cmdline) in
            @castra-agent*) echo ${process#/proc/};;
        esac
    done 2>/dev/null | sort -n";

#[test]
fn an_agent_that_was_killed_is_back_at_once_and_one_that_is_gone_is_reported() {
    let project = Project::new();
    project.run(&["up"]).ok();
    let hostname = sh(&project, "hostname").ok().text();
    let (supervisor, first) = agents(&project);

    // A command is lost with its agent, and the next one finds another.
    let started = Instant::now();
    sh(&project, &format!("kill -9 {first}; sleep 600")).code(255).says("was lost");
    assert!(started.elapsed() < LOSS_LIMIT, "{:?}", started.elapsed());
    let (same, second) = agents(&project);
    assert!(same == supervisor && second != first, "{supervisor} {first} {same} {second}");
    assert_eq!(sh(&project, "hostname; cat /etc/hostname").ok().text(), hostname.repeat(2));
    eventually("the guest reports its condition", LOSS_LIMIT, || {
        let status = status(&project);
        status["clock_ahead_ms"].is_i64() && status["network_fault"].is_null()
    });
    assert_eq!(status(&project)["agent_fault"], Value::Null);

    // One that is stopped continues by itself.
    sh(&project, &format!("kill -STOP {second}; echo still here")).ok();
    assert_eq!(agents(&project), (supervisor, second));

    let started = Instant::now();
    project.run(&["exec", "--", "kill", "-9", "-1"]).code(255).says("was lost");
    assert!(started.elapsed() < LOSS_LIMIT, "{:?}", started.elapsed());
    assert_eq!(status(&project)["agent_fault"], "gone");
    let started = Instant::now();
    // The service that listens to the power button was killed as well.
    project.run(&["down"]).code(69).says("neither castra's agent in it nor its power button");
    assert!(started.elapsed() < LOSS_LIMIT, "{:?}", started.elapsed());
    project.run(&["up"]).ok();
    assert_eq!(sh(&project, "hostname").ok().text(), hostname);
}

fn sh(project: &Project, line: &str) -> Ended {
    project.run(&["exec", "--", "sh", "-c", line])
}

fn status(project: &Project) -> Value {
    let status: Value =
        serde_json::from_str(&project.run(&["status", "--json"]).ok().text()).expect("JSON");
    status["vms"][0].clone()
}

/// Returns the pids of the agent's supervisor and of the agent.
fn agents(project: &Project) -> (u32, u32) {
    let text = sh(project, AGENTS).ok().text();
    let pids: Vec<u32> = text.lines().map(|pid| pid.parse().expect("a pid")).collect();
    let [supervisor, agent] = pids[..] else { panic!("two processes: {text}") };
    (supervisor, agent)
}
