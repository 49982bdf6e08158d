//! Images and disks that are not there, or not what they should be.

use crate::fake::Fake;
use crate::http::{Reply, Server};
use crate::support::{Project, tool};
use crate::transcript::{holds, transcript};

const OWN_DISK: &str = "[[vms]]\nname = \"web\"\nbase_image = \"mine.qcow2\"\n";

#[test]
fn a_base_image_that_is_none() {
    let project = Project::isolated();
    project.write("castra.toml", OWN_DISK);
    holds("base_image_missing", &transcript(&project, &["up"]));
    project.write("mine.qcow2", "this is no disk");
    holds("base_image_not_a_qcow2", &transcript(&project, &["up"]));
}

#[test]
fn a_base_image_that_goes() {
    let fake = Fake::new(&["vm"]);
    let disk = fake.path().join("mine.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", disk.to_str().expect("UTF-8"), "1M"]);
    fake.write("castra.toml", OWN_DISK);
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    std::fs::remove_file(disk).expect("removed");
    holds("base_image_gone", &transcript(&fake, &["up"]));
}

/// pip's address, too, so that nothing is reached whatever the user's settings are.
fn without_a_network() -> Project {
    let mut project = Project::isolated();
    for variable in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"] {
        // Discard: nothing listens there.
        project.set(variable, "http://127.0.0.1:9");
    }
    project.set("PIP_CONFIG_FILE", "/dev/null");
    project.set("PIP_RETRIES", "1");
    project
}

#[test]
fn no_network_and_nothing_cached() {
    let project = without_a_network();
    holds("no_network", &transcript(&project, &["up"]));
    holds("offline", &transcript(&project, &["--offline", "up"]));
}

#[test]
fn a_download_that_breaks_off() {
    let content = vec![b'x'; 64 * 1024];
    let server = Server::start(move |request| Reply::file(request, &content, None).cut(10_000));
    let project = Project::isolated();
    let digest = "0".repeat(64);
    project.write(
        "castra.toml",
        &format!(
            "[images.mine.rootfs]\nurl = \"{}\"\nsize = 65536\nsha256 = \"{digest}\"\n[[vms]]\nname = \"web\"\nmanaged_image = \"mine\"\n",
            server.url("/disk.qcow2"),
        ),
    );
    holds("interrupted_download", &transcript(&project, &["up"]));
}
