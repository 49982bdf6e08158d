//! Validation of image descriptions before anything is fetched, the user's and Castra's own alike:
//! paths and names in them end up on disk and on command lines.

use super::spec::{
    ArtifactRole, ArtifactSource, ManagedArtifactSpec, ManagedImageSpec, TransformStep,
};
use crate::files::Digest;
use crate::report::ImageLabel;

/// Longest id, version or file name in bytes: all become names on disk and parts of others.
const MAX_NAME_BYTES: usize = 64;

/// An invalid description.
#[derive(Debug, thiserror::Error)]
#[error("image {image}: {problem}")]
pub struct SpecError {
    /// Image with the invalid description.
    pub image: ImageLabel,
    /// The problem.
    pub problem: SpecProblem,
}

/// Problems of a description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecProblem {
    /// Invalid name.
    #[error(
        "`{0}` is not a name: letters, digits, `.`, `_` and `-` only, starting with a letter or \
        digit"
    )]
    Name(String),
    /// Not exactly one disk.
    #[error("it needs exactly one rootfs, and has {0}")]
    Disks(usize),
    /// Kernel without an initramfs or the other way round, or one of them twice.
    #[error("it needs one kernel and one initramfs, or neither")]
    KernelAndInitramfs,
    /// Kernel without a command line or the other way round.
    #[error("it needs both a kernel and a command line, or neither")]
    CommandLine,
    /// Digest that is not hexadecimal, or has the wrong length.
    #[error("the {role} has a digest that is not {digits} lower-case hexadecimal digits")]
    Digest {
        /// Artifact with the digest.
        role: ArtifactRole,
        /// Number of digits it should have.
        digits: usize,
    },
    /// Source without any URL, or with one of another scheme.
    #[error("the {role} needs URLs that start with https:// or http://")]
    Url {
        /// Artifact with the source.
        role: ArtifactRole,
    },
    /// Path that depends on the working directory.
    #[error("the {role}'s path `{path}` is not absolute")]
    RelativePath {
        /// Artifact with the path.
        role: ArtifactRole,
        /// The path.
        path: String,
    },
    /// Text that cannot be part of a Python requirement.
    #[error("the {role}'s Python package has an invalid name, version or platform `{text}`")]
    Python {
        /// Artifact with the package.
        role: ArtifactRole,
        /// The text.
        text: String,
    },
    /// Step with an invalid value.
    #[error("the {role}'s {step} has an invalid value `{value}`")]
    Step {
        /// Artifact with the pipeline.
        role: ArtifactRole,
        /// Name of the step.
        step: &'static str,
        /// The invalid value.
        value: String,
    },
}

/// Checks a description.
///
/// # Errors
/// Returns the first problem found.
pub(super) fn spec(spec: &ManagedImageSpec) -> Result<(), SpecError> {
    let problem = names(spec).err().or_else(|| roles(spec).err());
    let problem = problem.or_else(|| spec.artifacts.iter().find_map(|one| artifact(one).err()));
    problem.map_or(Ok(()), |problem| Err(SpecError { image: spec.label(), problem }))
}

fn names(spec: &ManagedImageSpec) -> Result<(), SpecProblem> {
    for name in [&spec.id, &spec.version] {
        if !is_word(name, "._-") || name.len() > MAX_NAME_BYTES {
            return Err(SpecProblem::Name(name.clone()));
        }
    }
    Ok(())
}

fn roles(spec: &ManagedImageSpec) -> Result<(), SpecProblem> {
    let count = |role| spec.artifacts.iter().filter(|artifact| artifact.role == role).count();
    let kernels = count(ArtifactRole::Kernel);
    match (count(ArtifactRole::Rootfs), kernels, count(ArtifactRole::Initramfs)) {
        (1, 0, 0) | (1, 1, 1) => {}
        (1, _, _) => return Err(SpecProblem::KernelAndInitramfs),
        (disks, _, _) => return Err(SpecProblem::Disks(disks)),
    }
    if spec.profile.command_line.is_some() != (kernels == 1) {
        return Err(SpecProblem::CommandLine);
    }
    Ok(())
}

fn artifact(artifact: &ManagedArtifactSpec) -> Result<(), SpecProblem> {
    let role = artifact.role;
    for digest in std::iter::once(&artifact.digest).chain(&artifact.product_digest) {
        if !is_digest(digest) {
            return Err(SpecProblem::Digest { role, digits: digits_of(digest) });
        }
    }
    source(role, &artifact.source)?;
    artifact.pipeline.iter().try_for_each(|one| step(role, one))
}

/// Returns `true` for the digits of a digest, which become the name of a file.
pub(super) fn is_digest(digest: &Digest) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    digest.hex().len() == digits_of(digest) && digest.hex().bytes().all(is_digit)
}

fn digits_of(digest: &Digest) -> usize {
    match digest {
        Digest::Sha256(_) => 64,
        Digest::Sha512(_) => 128,
    }
}

fn source(role: ArtifactRole, source: &ArtifactSource) -> Result<(), SpecProblem> {
    match source {
        ArtifactSource::Url(urls) => {
            let has_scheme =
                |url: &String| url.starts_with("https://") || url.starts_with("http://");
            let fine = !urls.is_empty() && urls.iter().all(has_scheme);
            if fine { Ok(()) } else { Err(SpecProblem::Url { role }) }
        }
        ArtifactSource::PythonPackage { name, version, platform } => {
            // A text that starts with a dash would be an option of pip.
            let texts = [(Some(name), "._-"), (Some(version), "._-+!"), (platform.as_ref(), "._-")];
            let bad = |(text, further): &(Option<&String>, &str)| {
                text.is_some_and(|text| !is_word(text, further))
            };
            match texts.into_iter().find(bad) {
                Some((text, _)) => {
                    Err(SpecProblem::Python { role, text: text.cloned().unwrap_or_default() })
                }
                None => Ok(()),
            }
        }
        ArtifactSource::Path(path) if path.is_absolute() => Ok(()),
        ArtifactSource::Path(path) => {
            Err(SpecProblem::RelativePath { role, path: path.display().to_string() })
        }
    }
}

fn step(role: ArtifactRole, step: &TransformStep) -> Result<(), SpecProblem> {
    let (fine, name, value) = match step {
        TransformStep::StripVhdFooter
        | TransformStep::Decompress { .. }
        | TransformStep::QemuImgConvert { .. } => return Ok(()),
        TransformStep::ExtractFile { path } => {
            (path.starts_with('/') && !path.contains('\0'), "extract-file", path.clone())
        }
        TransformStep::Unzip { member } => {
            (!member.is_empty() && !member.ends_with('/'), "unzip", member.clone())
        }
        TransformStep::Rename { name } => {
            (is_word(name, "._-") && name.len() <= MAX_NAME_BYTES, "rename", name.clone())
        }
    };
    if fine { Ok(()) } else { Err(SpecProblem::Step { role, step: name, value }) }
}

/// Returns `true` for letters, digits and the `further` characters, starting with a letter or
/// digit.
fn is_word(text: &str, further: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|one| one.is_ascii_alphanumeric() || further.contains(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managed::Catalog;

    /// Returns the problem found in the first built-in image after `spoil` has changed it.
    fn problem_of(spoil: impl FnOnce(&mut ManagedImageSpec)) -> SpecProblem {
        let mut image = Catalog::builtin().images()[0].clone();
        spoil(&mut image);
        spec(&image).expect_err("is refused").problem
    }

    #[test]
    fn names_stay_inside_their_directory() {
        for name in ["", "..", "../up", "a/b", ".hidden", "-rf", "ü"] {
            assert_eq!(
                problem_of(|image| image.id = name.to_owned()),
                SpecProblem::Name(name.to_owned())
            );
            assert_eq!(
                problem_of(|image| image.version = name.to_owned()),
                SpecProblem::Name(name.to_owned())
            );
        }
    }

    #[test]
    fn one_disk_and_a_matching_pair() {
        assert_eq!(problem_of(|image| drop(image.artifacts.remove(0))), SpecProblem::Disks(0));
        assert_eq!(
            problem_of(|image| drop(image.artifacts.pop())),
            SpecProblem::KernelAndInitramfs
        );
        assert_eq!(problem_of(|image| image.profile.command_line = None), SpecProblem::CommandLine);
    }

    #[test]
    fn a_digest_has_its_length() {
        let short = problem_of(|image| image.artifacts[0].digest = Digest::Sha256("ab".to_owned()));
        assert_eq!(short, SpecProblem::Digest { role: ArtifactRole::Rootfs, digits: 64 });
        let upper = problem_of(|image| image.artifacts[0].digest = Digest::Sha512("A".repeat(128)));
        assert_eq!(upper, SpecProblem::Digest { role: ArtifactRole::Rootfs, digits: 128 });
    }

    #[test]
    fn nothing_of_a_package_becomes_an_option_of_pip() {
        let problem = problem_of(|image| {
            image.artifacts[0].source = ArtifactSource::PythonPackage {
                name: "--index-url=x".to_owned(),
                version: "1".to_owned(),
                platform: None,
            };
        });
        assert!(matches!(problem, SpecProblem::Python { .. }));
    }

    #[test]
    fn a_file_is_not_renamed_out_of_its_directory() {
        for name in ["../up", "/etc/passwd", ".hidden", "a\0b", &"x".repeat(300)] {
            let step = TransformStep::Rename { name: name.to_owned() };
            let problem = problem_of(|image| image.artifacts[0].pipeline.push(step));
            assert!(matches!(problem, SpecProblem::Step { step: "rename", .. }), "{name:?}");
        }
    }

    #[test]
    fn what_cannot_be_taken_out_is_refused_before_anything_is_fetched() {
        let steps = [
            TransformStep::ExtractFile { path: "boot/vmlinuz".to_owned() },
            TransformStep::ExtractFile { path: "/boot\0/vmlinuz".to_owned() },
            TransformStep::Unzip { member: String::new() },
            TransformStep::Unzip { member: "directory/".to_owned() },
        ];
        for step in steps {
            let problem = problem_of(|image| image.artifacts[0].pipeline.push(step.clone()));
            assert!(matches!(problem, SpecProblem::Step { .. }), "{step:?}: {problem:?}");
        }
        let relative = ArtifactSource::Path("disk.qcow2".into());
        let problem = problem_of(|image| image.artifacts[0].source = relative);
        assert!(matches!(problem, SpecProblem::RelativePath { .. }), "{problem:?}");
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        assert_eq!(
            problem_of(|image| image.version = long.clone()),
            SpecProblem::Name(long.clone())
        );
    }

    #[test]
    fn other_schemes_are_refused() {
        let ftp = ArtifactSource::Url(vec!["ftp://example.org/x".to_owned()]);
        assert_eq!(
            problem_of(|image| image.artifacts[0].source = ftp),
            SpecProblem::Url { role: ArtifactRole::Rootfs }
        );
    }
}
