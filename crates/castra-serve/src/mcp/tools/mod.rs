//! Tools of the server. What their arguments say is what the client's model reads.

mod files;
mod lifecycle;
mod ports;
mod run;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::tool::ToolCallContext;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    IntoContents as _, JsonObject, ProgressNotificationParam, ServerCapabilities, ServerConfig,
    Tool,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler, tool_handler};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, interval_at};

use super::failure::Failure;
use super::ports::Ports;
use super::server::McpOptions;
use super::stdio::Ending;
use crate::sandboxes::{BASE, Sandbox, Sandboxes};

/// Interval of reports that a call is still worked on, for clients that ask for them.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// The tools. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tools {
    sandboxes: Arc<Sandboxes>,
    ports: Arc<Ports>,
    /// Template of sandboxes for which none is named.
    template: String,
    is_isolated: bool,
    ending: Ending,
    router: ToolRouter<Self>,
}

impl Tools {
    pub(super) fn new(sandboxes: Arc<Sandboxes>, options: &McpOptions, ending: Ending) -> Self {
        Self {
            sandboxes,
            ports: Arc::default(),
            template: options.template.clone().unwrap_or_else(|| BASE.to_owned()),
            is_isolated: options.is_isolated,
            ending,
            router: Self::all(),
        }
    }

    fn all() -> ToolRouter<Self> {
        Self::run_router() + Self::lifecycle_router() + Self::files_router() + Self::ports_router()
    }

    /// Returns a sandbox that runs.
    ///
    /// # Errors
    /// There is no such sandbox.
    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Failure> {
        Ok(self.sandboxes.get(id)?)
    }

    fn instructions(&self) -> String {
        let network = match self.is_isolated {
            true => "They have no network: packages cannot be installed.",
            false => "They reach the network, and this machine's 127.0.0.1 as 10.0.2.2.",
        };
        format!(
            "Linux VMs (sandboxes) on this machine, for commands and code that may be untrusted. \
            run_command and run_code make a fresh sandbox, and remove it afterwards, unless they \
            name one of start_sandbox, in which files and processes stay. {network} Commands run \
            as root. Templates: {} (default: {}).",
            self.sandboxes.templates().names().join(", "),
            self.template
        )
    }
}

#[tool_handler(router = self.router)]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("castra", env!("CARGO_PKG_VERSION")))
            .with_instructions(self.instructions())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = request.name.clone();
        let Some(tool) = self.router.get(&name) else {
            let message = format!("castra mcp has no tool {name}");
            return Err(ErrorData::invalid_params(message, None));
        };
        if let Err(failure) = check_names(tool, request.arguments.as_ref()) {
            return Ok(error(failure).into());
        }
        let calling = self.router.call(ToolCallContext::new(self, request, context.clone()));
        tokio::select! {
            called = calling => called,
            never = report(&name, &context) => match never {},
            () = self.ending.begun() => Ok(error(Failure::ending()).into()),
        }
    }
}

/// Checks the names of a call's arguments: one that is mistyped must not do nothing.
fn check_names(tool: &Tool, arguments: Option<&JsonObject>) -> Result<(), Failure> {
    let known = tool.input_schema.get("properties").and_then(Value::as_object);
    let is_known = |name: &str| known.is_some_and(|known| known.contains_key(name));
    let unknown = arguments.and_then(|given| given.keys().find(|name| !is_known(name)));
    let Some(unknown) = unknown else { return Ok(()) };
    let known: Vec<&str> =
        known.into_iter().flat_map(|known| known.keys()).map(|it| &**it).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(Failure::new(format!("{} has no argument {unknown}; it has {known}", tool.name)))
}

fn error(failure: Failure) -> CallToolResult {
    CallToolResult::error(failure.into_contents())
}

/// Returns a result with its text.
///
/// # Errors
/// The result cannot be written as JSON.
fn result(value: &impl Serialize, text: impl Into<String>) -> Result<CallToolResult, Failure> {
    let value = serde_json::to_value(value)
        .map_err(|error| Failure::new(format!("cannot write the result: {error}")))?;
    let mut result = CallToolResult::structured(value);
    result.content = vec![ContentBlock::text(text)];
    Ok(result)
}

/// Reports again and again that a call is worked on, if its client wants to know.
async fn report(tool: &str, context: &RequestContext<RoleServer>) -> Infallible {
    let Some(token) = context.meta.get_progress_token() else {
        return std::future::pending().await;
    };
    let began = Instant::now();
    let mut ticks = interval_at(began + REPORT_INTERVAL, REPORT_INTERVAL);
    loop {
        ticks.tick().await;
        let secs = began.elapsed().as_secs();
        let progress = ProgressNotificationParam::new(token.clone(), secs as f64)
            .with_message(format!("{tool}: {secs} s"));
        // A client that has gone is noticed elsewhere.
        let _ = context.peer.notify_progress(progress).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_arguments_are_refused() {
        let router = Tools::all();
        let check = |tool: &str, arguments: Value| {
            let arguments = arguments.as_object().cloned();
            check_names(router.get(tool).expect("a tool"), arguments.as_ref())
        };
        let given = serde_json::json!({ "command": "true", "timeout_secs": 3, "sandbox": "a" });
        assert_eq!(check("run_command", given), Ok(()));
        let refused = check("run_command", serde_json::json!({ "timeout": 3 })).err();
        let message = refused.as_ref().map(Failure::message).unwrap_or_default();
        assert!(message.starts_with("run_command has no argument timeout; it has "), "{message}");
        assert!(check("list_sandboxes", serde_json::json!({ "all": true })).is_err());
    }

    #[test]
    fn each_tool_has_a_description_and_both_schemas() {
        let tools = Tools::all().list_all();
        assert_eq!(tools.len(), 12);
        for tool in tools {
            let name = &tool.name;
            assert!(tool.description.is_some_and(|text| text.len() > 20), "{name}");
            assert!(tool.output_schema.is_some(), "{name}");
            let properties = &tool.input_schema["properties"];
            for (argument, schema) in properties.as_object().expect("properties") {
                assert!(schema["description"].is_string(), "{name}: {argument}");
            }
        }
    }
}
