//! `cloud_init`: data for cloud-init, in the file or beside it.

use super::super::cloud_init::{CloudInit, CloudInitText};
use super::super::diagnostics::Problems;
use super::super::schema::{Fields, Key, ShapeProblem, key};
use super::{Scope, path};

const CLOUD_INIT: Key = key("cloud_init", "{ user_data = \"user-data.yaml\" }");
const USER_DATA: Key = key("user_data", "\"user-data.yaml\"");
const NETWORK_CONFIG: Key = key("network_config", "\"network-config.yaml\"");

/// Reads the table of a VM; `None` if there is none.
pub(super) fn read(
    of_vm: &mut Fields<'_>,
    title: &str,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Option<CloudInit> {
    let value = of_vm.value(CLOUD_INIT)?;
    let mut fields = Fields::of(value, CLOUD_INIT, format!("`cloud_init` of {title}"), problems)?;
    if !fields.has(USER_DATA) {
        fields.missing(USER_DATA, problems);
    }
    let user_data = read_text(&mut fields, USER_DATA, scope, problems);
    let network_config = read_text(&mut fields, NETWORK_CONFIG, scope, problems);
    fields.warn_unknown(problems);
    Some(CloudInit { user_data: user_data?, network_config })
}

/// Reads a text: with a line break it is the data itself, else the path of a file.
fn read_text(
    fields: &mut Fields<'_>,
    key: Key,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Option<CloudInitText> {
    let text = fields.string(key, problems)?;
    if text.get_ref().is_empty() {
        problems.error(text.span(), &ShapeProblem::Empty { key });
        return None;
    }
    if text.get_ref().contains('\n') {
        return Some(CloudInitText::Inline((*text.get_ref()).to_owned()));
    }
    match path::resolve_file(text.get_ref(), scope.root, scope.home) {
        Ok(path) => Some(CloudInitText::File { path, root: scope.root.to_owned() }),
        Err(problem) => {
            problems.error(text.span(), &problem);
            None
        }
    }
}
