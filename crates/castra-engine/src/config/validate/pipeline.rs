//! `pipeline`: the steps from the bytes of a source to a file of an image.

use toml::Spanned;
use toml::de::DeValue;

use super::super::diagnostics::{Problem, Problems, listed, quoted};
use super::super::schema::{Fields, Key, Value, key, wrong_element};
use super::name;
use crate::managed::{ArtifactRole, Compression, TransformStep};
use crate::qemu::DiskFormat;
use crate::similar::closest;

/// Key of an artifact's steps.
pub(super) const PIPELINE: Key =
    key("pipeline", "[\"strip-vhd-footer\", { convert = { from = \"raw\", to = \"qcow2\" } }]");
const STRIP_VHD_FOOTER: &str = "strip-vhd-footer";
const EXTRACT_FILE: Key = key("extract-file", "\"/boot/vmlinuz-virt\"");
const CONVERT: Key = key("convert", "{ from = \"raw\", to = \"qcow2\" }");
const FROM: Key = key("from", "\"raw\"");
const TO: Key = key("to", "\"qcow2\"");
const UNZIP: Key = key("unzip", "\"images/disk.qcow2\"");
const DECOMPRESS: Key = key("decompress", "\"gzip\"");
const RENAME: Key = key("rename", "\"disk.raw\"");
/// Compression formats by name, and by the file name extension.
const COMPRESSIONS: [(&str, Compression); 5] = [
    ("gzip", Compression::Gzip),
    ("gz", Compression::Gzip),
    ("xz", Compression::Xz),
    ("zstd", Compression::Zstd),
    ("zst", Compression::Zstd),
];

/// Formats that every qemu-img reads and writes, by its own names; VHD, which qemu-img calls `vpc`,
/// also has its common name.
const FORMATS: [(&str, DiskFormat); 7] = [
    ("qcow2", DiskFormat::Qcow2),
    ("raw", DiskFormat::Raw),
    ("vdi", DiskFormat::Vdi),
    ("vhd", DiskFormat::Vpc),
    ("vhdx", DiskFormat::Vhdx),
    ("vmdk", DiskFormat::Vmdk),
    ("vpc", DiskFormat::Vpc),
];

/// Longest file name on Linux file systems, in bytes.
const MAX_FILE_NAME_BYTES: usize = 255;

/// Error for an invalid step.
#[derive(Debug, thiserror::Error)]
enum StepProblem {
    #[error("there is no pipeline step {}", quoted(.0))]
    Unknown(String),
    #[error("a pipeline step is one word or a table of one key, but this one has {0} keys")]
    NotOneKey(usize),
    #[error("the path {} inside the image is not absolute", quoted(.0))]
    NotAbsolute(String),
    #[error("the disk is converted to {}, but a VM's disk is based on a qcow2", quoted(.0))]
    DiskIsNoQcow2(&'static str),
}

impl Problem for StepProblem {
    fn help(&self) -> String {
        let all = [
            STRIP_VHD_FOOTER,
            EXTRACT_FILE.name,
            CONVERT.name,
            UNZIP.name,
            DECOMPRESS.name,
            RENAME.name,
        ];
        match self {
            Self::Unknown(step) => match closest(step, all) {
                Some(near) => format!("Did you mean {}?", spelled(near)),
                None => format!("Steps are {}.", listed(all, "and")),
            },
            Self::NotOneKey(_) => format!("Write for instance {PIPELINE}."),
            Self::NotAbsolute(path) => format!("Write `\"/{}\"`.", path.escape_debug()),
            Self::DiskIsNoQcow2(_) => "Write `to = \"qcow2\"` in the last `convert`.".to_owned(),
        }
    }
}

/// Returns the spelling of a step: a step with a value is a table.
fn spelled(step: &str) -> String {
    match [EXTRACT_FILE, CONVERT, UNZIP, DECOMPRESS, RENAME]
        .into_iter()
        .find(|key| key.name == step)
    {
        Some(key) => format!("`{{ {} = {} }}`", key.name, key.example),
        None => format!("`\"{step}\"`"),
    }
}

/// Reads the pipeline of an artifact; `None` after a problem. A missing one is empty.
pub(super) fn read(
    fields: &mut Fields<'_>,
    role: ArtifactRole,
    problems: &mut Problems,
) -> Option<Vec<TransformStep>> {
    if !fields.has(PIPELINE) {
        let _ = fields.value(PIPELINE);
        return Some(Vec::new());
    }
    let values = fields.array(PIPELINE, problems)?;
    let steps: Vec<Option<TransformStep>> =
        values.iter().map(|value| read_step(value, problems)).collect();
    if role == ArtifactRole::Rootfs {
        check_disk_format(values, &steps, problems);
    }
    steps.into_iter().collect()
}

fn read_step(value: &Value<'_>, problems: &mut Problems) -> Option<TransformStep> {
    match value.get_ref() {
        DeValue::String(word) if word == STRIP_VHD_FOOTER => Some(TransformStep::StripVhdFooter),
        DeValue::String(word) => {
            problems.error(value.span(), &StepProblem::Unknown(word.clone().into_owned()));
            None
        }
        DeValue::Table(table) if table.len() == 1 => {
            let fields = Fields::new(table, value.span(), "a pipeline step");
            read_step_table(fields, problems)
        }
        DeValue::Table(table) => {
            problems.error(value.span(), &StepProblem::NotOneKey(table.len()));
            None
        }
        other => {
            problems.error(value.span(), &wrong_element(PIPELINE, "a word or a table", other));
            None
        }
    }
}

fn read_step_table(mut fields: Fields<'_>, problems: &mut Problems) -> Option<TransformStep> {
    if fields.has(EXTRACT_FILE) {
        let path = fields.line(EXTRACT_FILE, problems)?;
        if path.get_ref().starts_with('/') {
            return Some(TransformStep::ExtractFile { path: (*path.get_ref()).to_owned() });
        }
        problems.error(path.span(), &StepProblem::NotAbsolute((*path.get_ref()).to_owned()));
        return None;
    }
    if fields.has(CONVERT) {
        return fields.value(CONVERT).and_then(|value| read_convert(value, problems));
    }
    if fields.has(UNZIP) {
        let member = (*fields.line(UNZIP, problems)?.get_ref()).to_owned();
        return Some(TransformStep::Unzip { member });
    }
    if fields.has(DECOMPRESS) {
        let format = *fields.word(DECOMPRESS, &COMPRESSIONS, problems)?.get_ref();
        return Some(TransformStep::Decompress { format });
    }
    if fields.has(RENAME) {
        let text = fields.line(RENAME, problems)?;
        if let Err(problem) =
            name::check_file_name("file name", text.get_ref(), MAX_FILE_NAME_BYTES)
        {
            problems.error(text.span(), &problem);
            return None;
        }
        return Some(TransformStep::Rename { name: (*text.get_ref()).to_owned() });
    }
    let unknown: Vec<Spanned<&str>> = fields.others().map(|(key, _)| key).collect();
    for key in unknown {
        problems.error(key.span(), &StepProblem::Unknown((*key.get_ref()).to_owned()));
    }
    None
}

fn read_convert(value: &Value<'_>, problems: &mut Problems) -> Option<TransformStep> {
    let mut fields = Fields::of(value, CONVERT, "`convert`".to_owned(), problems)?;
    let mut format = |key| {
        if !fields.has(key) {
            fields.missing(key, problems);
        }
        fields.word(key, &FORMATS, problems).map(|word| *word.get_ref())
    };
    let (input, output) = (format(FROM), format(TO));
    fields.warn_unknown(problems);
    Some(TransformStep::QemuImgConvert { input_format: input?, output_format: output? })
}

/// Checks that the last conversion of a disk produces qcow2, because overlays name that as the
/// disk's format.
fn check_disk_format(
    values: &[Value<'_>],
    steps: &[Option<TransformStep>],
    problems: &mut Problems,
) {
    let last = steps.iter().zip(values).rev().find_map(|(step, value)| match step {
        Some(TransformStep::QemuImgConvert { output_format, .. }) => {
            Some((*output_format, value.span()))
        }
        _ => None,
    });
    if let Some((format, span)) = last
        && format != DiskFormat::Qcow2
    {
        problems.error(span, &StepProblem::DiskIsNoQcow2(format.name()));
    }
}
