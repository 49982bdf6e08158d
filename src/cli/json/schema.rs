//! JSON Schema of every document and event line, for docs/json.schema.json.

use castra_engine::config::JoinLines;
use castra_engine::report::Event;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::super::{
    adopt, capture, clean, completions, config, cp, doctor, image, init, list, logs, man, mount,
    open, port, ports, resize, serve, ssh_config, status, template, timeline,
};
use super::reporter::{Ending, Line};
use super::{Document, Outcomes};

/// Returns the JSON schema of all output of `--json`: under `$defs` one schema per command, by the
/// command's name, and `event` for the lines on stderr.
pub fn schema() -> Value {
    let mut definitions = Map::new();
    for (name, schema) in documents() {
        definitions.insert(name.to_owned(), schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Output of castra --json",
        "description": "Each command's document on stdout is described under its name, the lines \
            on stderr under `event`.",
        "$defs": definitions,
    })
}

fn documents() -> Vec<(&'static str, Value)> {
    vec![
        ("event", json!({ "oneOf": [line::<Event>(), line::<Ending>()] })),
        ("init", document::<init::Initialised>()),
        ("up", document::<Outcomes>()),
        ("down", document::<Outcomes>()),
        ("restart", document::<Outcomes>()),
        ("suspend", document::<Outcomes>()),
        ("clone", document::<Outcomes>()),
        ("status", document::<status::Vms>()),
        ("list", document::<list::AllVms>()),
        ("adopt", document::<adopt::Adopted>()),
        ("clean", document::<clean::CleanedUp>()),
        ("ports", document::<ports::PortList>()),
        ("mount", document::<mount::Mounts>()),
        ("umount", document::<mount::Mounts>()),
        ("resize", document::<resize::ResizedDisk>()),
        ("port add", document::<port::ChangedPorts>()),
        ("port rm", document::<port::ChangedPorts>()),
        ("open", document::<open::Opened>()),
        ("logs", document::<logs::LogLines>()),
        ("exec", document::<capture::Captured>()),
        ("run", document::<capture::Captured>()),
        ("serve", document::<serve::Serving>()),
        ("cp", document::<cp::Copies>()),
        ("doctor", document::<doctor::Diagnosis>()),
        ("timeline", document::<timeline::Starts>()),
        ("ssh-config", document::<ssh_config::SshHosts>()),
        ("image list", document::<image::ImageList>()),
        ("image show", document::<image::ImageShown>()),
        ("image pull", document::<image::ImagesPulled>()),
        ("image update", document::<image::ImagesUpdated>()),
        ("image verify", document::<image::ImagesVerified>()),
        ("image import", document::<image::ImageImported>()),
        ("image export", document::<image::ImageExported>()),
        ("image prune", document::<image::ImagesPruned>()),
        ("template list", document::<template::Templates>()),
        ("template verify", document::<template::Templates>()),
        ("template prune", document::<template::Templates>()),
        ("config check", document::<config::ConfigChecked>()),
        ("config show", document::<config::ConfigShown>()),
        ("config schema", document::<config::SchemaShown>()),
        ("completions", document::<completions::CompletionScript>()),
        ("man", document::<man::Manual>()),
    ]
}

fn document<T: JsonSchema>() -> Value {
    of::<Document<T>>()
}

fn line<T: JsonSchema>() -> Value {
    of::<Line<T>>()
}

/// Returns a self-contained schema, since two commands may have different types of one name.
fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let settings = settings.with_transform(JoinLines);
    SchemaGenerator::new(settings.for_serialize()).into_root_schema_for::<T>().to_value()
}
