//! `castra mcp`: sandboxes for coding agents, by the Model Context Protocol.

use std::process::ExitCode;

use castra_engine::Castra;
use castra_engine::context::working_directory;
use castra_engine::error::Result;
use castra_engine::layout::UserStateLayout;
use castra_serve::{McpOptions, McpServer, Place};

use super::args::{McpArgs, Reach};
use super::context::CommandContext;
use super::error::CliError;
use super::serve::{interrupted, own_directory, sandbox_options};

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
    let server = McpServer::open(&Castra::of(context.runtime.clone()), options)?;
    server.serve(interrupted(context))?;
    Ok(ExitCode::SUCCESS)
}

fn place(mcp: &McpArgs, context: &CommandContext) -> Result<Place> {
    Ok(match &mcp.state {
        Some(state) => Place::Directory(working_directory()?.join(state)),
        None => Place::Slots(own_directory(context, UserStateLayout::mcp, ".castra-mcp")?),
    })
}
