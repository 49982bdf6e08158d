//! Signatures of publishers, with keys of the test's own.

use std::fs;

use castra_test_support::Project;
use castra_test_support::publishers::Publishers;
use pgp::composed::{
    ArmorOptions, CleartextSignedMessage, DetachedSignature, KeyType, SecretKeyParamsBuilder,
    SignedSecretKey,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::types::{KeyDetails as _, Password};
use rand_of_pgp::rngs::OsRng;

use crate::image_commands::fixture::{names, sha256};

const ALMA: &str = "https://repo.almalinux.org/almalinux/9/cloud/x86_64/images";
const FEDORA: &str = concat!(
    "https://dl.fedoraproject.org/pub/archive/fedora/linux/releases/42/Cloud/x86_64/images/",
    "Fedora-Cloud-42-1.1-x86_64-CHECKSUM"
);

/// A publisher's key.
struct Key(SignedSecretKey);

impl Key {
    fn new() -> Self {
        let mut parameters = SecretKeyParamsBuilder::default();
        parameters
            .key_type(KeyType::Ed25519Legacy)
            .can_certify(true)
            .can_sign(true)
            .primary_user_id("Castra test <test@example.org>".to_owned());
        let parameters = parameters.build().expect("complete");
        Self(parameters.generate(OsRng).expect("generated"))
    }

    fn fingerprint(&self) -> String {
        format!("{:X}", self.0.fingerprint())
    }

    fn public(&self) -> String {
        let key = self.0.to_public_key();
        key.to_armored_string(ArmorOptions::default()).expect("written")
    }

    fn detached(&self, text: &str, hash: HashAlgorithm) -> String {
        let (key, password) = (&self.0.primary_key, Password::empty());
        let signed =
            DetachedSignature::sign_binary_data(OsRng, key, &password, hash, text.as_bytes());
        let signature = signed.expect("signed");
        signature.to_armored_string(ArmorOptions::default()).expect("written")
    }

    fn inline(&self, text: &str) -> String {
        let (key, password) = (&self.0.primary_key, Password::empty());
        let message = CleartextSignedMessage::sign(OsRng, text, key, &password).expect("signed");
        message.to_armored_string(ArmorOptions::default()).expect("written")
    }
}

/// Returns a project with a VM on AlmaLinux and one on Fedora, and keys of both.
fn project(publishers: &Publishers) -> Project {
    let mut project = Project::isolated();
    for (name, value) in publishers.environment() {
        project.set(name, value);
    }
    configure(&project, "[images.keys]\nalmalinux = \"alma.asc\"\nfedora = \"fedora.asc\"\n");
    project
}

fn configure(project: &Project, keys: &str) {
    let vm = |image: &str| format!("[[vms]]\nname = \"{image}\"\nmanaged_image = \"{image}\"\n");
    project.write("castra.toml", &[vm("almalinux-9"), vm("fedora-42"), keys.to_owned()].concat());
}

fn publishers() -> Publishers {
    Publishers::start(&["repo.almalinux.org", "dl.fedoraproject.org"])
}

/// Returns AlmaLinux's checksum file with this build as the newest, which is published, too.
fn alma(publishers: &Publishers, version: &str) -> String {
    let name = format!("AlmaLinux-9-GenericCloud-{version}.x86_64.qcow2");
    publishers.put(&format!("{ALMA}/{name}"), version);
    let hex = sha256(version.as_bytes());
    let text = format!("{hex}  {name}\n{hex}  AlmaLinux-9-GenericCloud-latest.x86_64.qcow2\n");
    publishers.put(&format!("{ALMA}/CHECKSUM"), text.as_str());
    text
}

fn fedora() -> String {
    let name = "Fedora-Cloud-Base-Generic-42-1.1.x86_64.qcow2";
    let hex = "e401a4db2e5e04d1967b6729774faa96da629bcf3ba90b67d8d9cce9906bec0f";
    format!("# {name}: 532217856 bytes\nSHA256 ({name}) = {hex}\n")
}

#[test]
fn signatures_are_verified_and_recorded() {
    let (publishers, old, key) = (publishers(), Key::new(), Key::new());
    let project = project(&publishers);
    // A file may hold the keys of several releases, one block after the other.
    project.write("alma.asc", &format!("Keys\n{}\n{}", old.public(), key.public()));
    project.write("fedora.asc", &key.public());
    let text = alma(&publishers, "9.9-20261112");
    let signature = format!("{ALMA}/CHECKSUM.asc");
    publishers.put(&signature, key.detached(&text, HashAlgorithm::Sha512));
    publishers.put(FEDORA, key.inline(&fedora()));
    let shown = project.run(&["image", "--json", "update"]).ok().document("image update");
    for index in [0, 1] {
        assert_eq!(shown["images"][index]["signed_by"], key.fingerprint(), "{shown}");
    }
    let lock = fs::read_to_string(project.path().join("castra.lock")).expect("is there");
    let signed_by = format!("signed_by = \"{}\"", key.fingerprint());
    assert_eq!(lock.matches(&signed_by).count(), 2, "{lock}");
    project.run(&["image", "update"]).ok().says("is the newest").says(&key.fingerprint());

    // What was signed does not become unsigned.
    configure(&project, "");
    project
        .run(&["image", "update"])
        .code(65)
        .says(&format!("pinned as signed by {}", key.fingerprint()))
        .says("[images.keys]");
    assert_eq!(fs::read_to_string(project.path().join("castra.lock")).expect("is there"), lock);

    // What was unsigned may become signed.
    fs::remove_file(project.path().join("castra.lock")).expect("is there");
    project.run(&["image", "update"]).ok();
    configure(&project, "[images.keys]\nalmalinux = \"alma.asc\"\nfedora = \"fedora.asc\"\n");
    project
        .run(&["image", "update"])
        .ok()
        .says("almalinux-9 9.9-20261112 is the newest, and now signed");
    let again = fs::read_to_string(project.path().join("castra.lock")).expect("is there");
    assert_eq!(again, lock);
    // A text that is signed inside of its file needs no second one.
    publishers.remove(&signature);
    publishers.put(&format!("{ALMA}/CHECKSUM"), old.inline(&text));
    project.run(&["image", "update"]).ok().says(&old.fingerprint());
}

#[test]
fn what_is_not_signed_by_the_publisher_is_refused() {
    let (publishers, key, other) = (publishers(), Key::new(), Key::new());
    let project = project(&publishers);
    project.write("fedora.asc", &key.public());
    let text = alma(&publishers, "9.9-20261112");
    let (list, signature) = (format!("{ALMA}/CHECKSUM"), format!("{ALMA}/CHECKSUM.asc"));
    publishers.put(&signature, key.detached(&text, HashAlgorithm::Sha256));
    let refused = |image: &str, said: &str, code: i32| {
        let ended = project.run(&["image", "update", image]);
        ended.code(code).says(said).says("hint");
        assert!(!names(&project.path()).contains(&"castra.lock".to_owned()), "{said}");
    };
    let alma = |said| refused("almalinux-9", said, 65);
    refused("almalinux-9", "alma.asc, the key of `almalinux`, cannot be opened", 74);
    project.write("alma.asc", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nnonsense\n");
    alma("the key of `almalinux`, cannot be used");
    project.write("alma.asc", "not a key\n");
    alma("the key of `almalinux`, cannot be used");
    project.write("alma.asc", &key.public());
    publishers.put(&list, format!("{text}{}  x\n", sha256(b"")));
    alma("the signature does not fit");
    publishers.put(&list, text.as_str());
    publishers.put(&signature, other.detached(&text, HashAlgorithm::Sha256));
    alma("not signed by a key of the file");
    publishers.put(&signature, "-----BEGIN PGP SIGNATURE-----\n\nAAAA\n");
    alma("cannot be verified");
    publishers.put(&signature, vec![b'x'; (64 << 10) + 1]);
    alma("sends more than the expected 64 KiB");
    publishers.remove(&signature);
    alma("there is no signature at");

    let fedora = |said| refused("fedora-42", said, 65);
    publishers.put(FEDORA, self::fedora());
    fedora("cannot be verified");
    publishers.put(FEDORA, key.inline(&self::fedora()).replace("532217856", "532217857"));
    fedora("the signature does not fit");
    publishers.put(FEDORA, other.inline(&self::fedora()));
    fedora("not signed by a key of the file");
    let around = |text: &str| format!("{}  evil.qcow2\n{text}", sha256(b"evil"));
    publishers.put(FEDORA, around(&key.inline(&self::fedora())));
    fedora("cannot be verified");
}
