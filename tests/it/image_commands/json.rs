//! `--json`: one value on stdout, whose fields are all in `docs/json.md`.

use std::collections::BTreeSet;

use castra_test_support::Ended;
use serde_json::Value;

use crate::image_commands::fixture::{project, rootfs, rot, serve, unlock};

const REFERENCE: &str = include_str!("../../../docs/json.md");

fn keys(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            into.extend(fields.keys().cloned());
            fields.values().for_each(|value| keys(value, into));
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, into)),
        _ => {}
    }
}

#[track_caller]
fn documented(ended: &Ended, subcommand: &str) -> Value {
    let value = ended.document(&format!("image {subcommand}"));
    assert_eq!(value["version"], 1);
    let mut fields = BTreeSet::new();
    keys(&value, &mut fields);
    for field in fields {
        assert!(
            REFERENCE.contains(&format!("`{field}`")),
            "docs/json.md does not mention `{field}`"
        );
    }
    value
}

#[test]
fn every_subcommand_speaks_json_and_every_field_is_documented() {
    let server = serve();
    let project = project(&server);
    let run = |arguments: &[&str]| {
        documented(&project.run(&[&["image", "--json"], arguments].concat()).ok(), arguments[0])
    };
    let pulled = run(&["pull"]);
    assert_eq!(
        (&pulled["images"][0]["image"]["name"], &pulled["images"][0]["in_project"]),
        (&"disk".into(), &true.into())
    );
    let listed = run(&["list"]);
    let names: Vec<&Value> = listed["images"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| &row["image"]["name"])
        .collect();
    assert_eq!(names, ["alpine-minimal", "alpine-pypi", "disk"]);
    assert_eq!(run(&["show", "disk"])["artifacts"][0]["role"], "rootfs");
    run(&["show", "alpine-minimal"]);
    run(&["show", "alpine-pypi"]);
    unlock(&rootfs(&project));
    rot(&rootfs(&project));
    let verified = run(&["verify"]);
    assert_eq!(verified["images"][0]["outcome"], "repaired");
    assert_eq!(verified["images"][0]["files"][0]["finding"], "changed");
    assert_eq!(run(&["verify"])["images"][0]["outcome"], "intact");
    assert!(run(&["export", "disk", "disk.tar"])["size_bytes"].as_u64().is_some());
    assert_eq!(run(&["import", "disk.tar"])["files"][0]["images"][0]["name"], "disk");
    let pruned = run(&["prune"]);
    assert_eq!(
        (&pruned["dry_run"], &pruned["removed"][0]["kind"]),
        (&false.into(), &"quarantine".into())
    );
}

#[test]
fn an_image_that_cannot_be_repaired_is_reported_as_json_too() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    unlock(&rootfs(&project));
    rot(&rootfs(&project));
    std::fs::remove_dir_all(project.cache().join("blobs")).expect("is ours");
    let ended = project.run(&["image", "verify", "--offline", "--json"]).code(65);
    let value = documented(&ended, "verify");
    assert_eq!(value["images"][0]["outcome"], "damaged");
    assert!(value["images"][0]["error"].as_str().expect("text").contains("is disabled"));
}
