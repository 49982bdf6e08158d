//! `castra mcp`: sandboxes for coding agents, by the Model Context Protocol.

use std::process::ExitCode;
use std::time::Duration;

use castra_engine::Castra;
use castra_engine::cancel::Cancel;
use castra_engine::context::working_directory;
use castra_engine::error::Result;
use castra_serve::{McpOptions, McpServer, Place};

use super::args::{McpArgs, Reach};
use super::context::CommandContext;
use super::error::CliError;
use super::serve::sandbox_options;

/// Interval of looks whether the server is asked to end.
const LOOK: Duration = Duration::from_millis(50);

/// Serves until the client closes stdin, or until the user interrupts it.
pub(super) fn run(mcp: &McpArgs, context: &CommandContext) -> Result<ExitCode> {
    // Stdout has the protocol alone.
    if context.printer.is_json() {
        return Err(CliError::NoJson { what: "an MCP server" }.into());
    }
    let options = McpOptions {
        place: place(mcp, context)?,
        sandboxes: sandbox_options(&mcp.sandboxes, mcp.max_vms, 0, context)?,
        template: mcp.template.clone(),
        is_isolated: mcp.network == Reach::Isolated,
    };
    // An interrupt ends the server, which then still works on VMs.
    let uncancelled = || {
        let mut runtime = context.runtime.clone();
        runtime.cancel = Cancel::new();
        Castra::of(runtime)
    };
    let server = McpServer::open(uncancelled(), uncancelled(), options)?;
    let cancel = context.runtime.cancel.clone();
    server.serve(async move {
        while !cancel.is_cancelled() {
            tokio::time::sleep(LOOK).await;
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn place(mcp: &McpArgs, context: &CommandContext) -> Result<Place> {
    Ok(match (&mcp.state, &context.runtime.user_state) {
        (Some(state), _) => Place::Directory(working_directory()?.join(state)),
        (None, Some(own)) => Place::Slots(own.mcp()),
        // Without a home there is no place for them.
        (None, None) => Place::Slots(context.runtime.environment.home()?.join(".castra-mcp")),
    })
}
