//! `forward_port`.

use rmcp::handler::server::tool::schema_for_type;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::CallToolResult;
use rmcp::schemars::{self, JsonSchema};
use rmcp::{tool, tool_router};
use serde::{Deserialize, Serialize};

use super::{Tools, result};
use crate::mcp::failure::Failure;
use crate::sandboxes::SandboxError;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ForwardPort {
    /// Identifier of the sandbox
    sandbox: String,
    /// TCP port in the sandbox
    #[schemars(range(min = 1))]
    port: u16,
    /// TCP port of this machine; without one, any that is free
    #[schemars(range(min = 1))]
    local_port: Option<u16>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Forward {
    sandbox: String,
    port: u16,
    /// Address on this machine that leads to the port
    address: String,
    /// Port of this machine
    local_port: u16,
    /// True if something listens on the sandbox's port already
    is_open: bool,
}

#[tool_router(router = ports_router, vis = "pub(super)")]
impl Tools {
    /// Forwards a port of this machine, on 127.0.0.1, to a TCP port of a sandbox, such as that of a
    /// web server in it. It works without a network, too, and ends with the sandbox.
    #[tool(
        annotations(title = "Forward a port", destructive_hint = false, open_world_hint = false),
        output_schema = schema_for_type::<Forward>(),
    )]
    async fn forward_port(
        &self,
        Parameters(ForwardPort { sandbox: id, port, local_port }): Parameters<ForwardPort>,
    ) -> Result<CallToolResult, Failure> {
        if port == 0 || local_port == Some(0) {
            return Err(Failure::new("a port is 0; give a number from 1 to 65535"));
        }
        let sandbox = self.sandbox(&id)?;
        let is_open = sandbox.session().await?.connect(port).await.is_ok();
        let address = self.ports.forward(sandbox, port, local_port).await?;
        if self.sandboxes.get(&id).is_err() {
            // It was stopped meanwhile.
            self.ports.remove(&id);
            return Err(SandboxError::NotFound(id).into());
        }
        let note = if is_open { "" } else { "; nothing listens there yet" };
        let text = format!("{address} leads to port {port} of {id}{note}");
        let local_port = address.port();
        let address = address.to_string();
        result(&Forward { sandbox: id, port, address, local_port, is_open }, text)
    }
}
