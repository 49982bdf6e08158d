//! The server: from its directory to its end.

use std::sync::Arc;
use std::time::Duration;

use castra_engine::{Cancel, Castra};
use rmcp::ServiceExt as _;
use rmcp::service::ServerInitializeError;
use tokio::runtime::Runtime;

use super::leftovers::{is_throwaway, settle};
use super::slots::{self, Place};
use super::stdio::{self, Ending};
use super::tools::Tools;
use crate::directory::StateDirectory;
use crate::error::ServeError;
use crate::sandboxes::{SandboxOptions, Sandboxes};

/// Time for work on VMs to stop once it was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Settings of an MCP server.
#[derive(Clone)]
pub struct McpOptions {
    /// Place of its sandboxes.
    pub place: Place,
    /// Settings of its sandboxes.
    pub sandboxes: SandboxOptions,
    /// Template of sandboxes for which a client names none.
    pub template: Option<String>,
    /// True if sandboxes reach nothing over the network.
    pub is_isolated: bool,
}

/// An MCP server, from [`McpServer::open`].
pub struct McpServer {
    directory: StateDirectory,
    sandboxes: Arc<Sandboxes>,
    options: McpOptions,
    runtime: Runtime,
    /// Castra whose first starts the end cancels.
    castra: Castra,
}

impl McpServer {
    /// Takes over the sandboxes of an earlier server.
    ///
    /// # Errors
    /// The directory cannot be used, or another server has it, or the template is unknown.
    pub fn open(castra: &Castra, options: McpOptions) -> Result<Self, ServeError> {
        // The client's end cancels, too, and is no interrupt of the caller's other work.
        let castra = castra.with_cancel(Cancel::new());
        let directory = slots::take(&options.place)?;
        let sandboxes = Sandboxes::open(&castra, directory.path(), &options.sandboxes)?;
        if let Some(template) = &options.template
            && sandboxes.templates().image(template).is_none()
        {
            let names = sandboxes.templates().names().join(", ");
            return Err(ServeError::Template { name: template.clone(), names });
        }
        sandboxes.recover().map_err(|error| directory.failed(error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(ServeError::Runtime)?;
        let sandboxes = Arc::new(sandboxes);
        Ok(Self { directory, sandboxes, options, runtime, castra })
    }

    /// Serves until the client closes stdin, or until `ended` is done. Then throw-away sandboxes
    /// are removed, and the others paused.
    ///
    /// # Errors
    /// Stdin cannot be read, or the directory cannot be used any more.
    pub fn serve(self, ended: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { directory, sandboxes, options, runtime, castra } = self;
        settle_others(&castra, &directory, &options);
        let ending = Ending::new();
        let served = runtime.block_on(async {
            tokio::spawn(Arc::clone(&sandboxes).keep_time());
            tokio::spawn(remove_throwaways(Arc::clone(&sandboxes)));
            let input = stdio::stdin(ending.clone()).map_err(ServeError::Runtime)?;
            let tools = Tools::new(sandboxes, &options, ending.clone());
            tokio::select! {
                () = converse(tools, input) => {}
                () = ended => {}
            }
            Ok(())
        });
        ending.begin();
        castra.cancel().cancel();
        // A client that reads no more may keep a thread at its stdout.
        runtime.shutdown_timeout(STOP_LIMIT);
        settle(&castra, &directory, &options.sandboxes)?;
        served
    }
}

/// Answers requests until the client closes the connection.
async fn converse(tools: Tools, input: tokio::net::UnixStream) {
    match tools.serve((input, tokio::io::stdout())).await {
        Ok(running) => drop(running.waiting().await),
        // A client that leaves at once has not asked for anything.
        Err(ServerInitializeError::ConnectionClosed(_)) => {}
        Err(error) => tracing::warn!("the client does not begin as MCP clients do: {error}"),
    }
}

/// Removes sandboxes whose command ended with an earlier server.
async fn remove_throwaways(sandboxes: Arc<Sandboxes>) {
    for record in sandboxes.list().into_iter().filter(is_throwaway) {
        if let Err(error) = sandboxes.kill(&record.id).await {
            tracing::warn!("sandbox {} of an earlier server: {error}", record.id);
        }
    }
}

/// Pauses sandboxes of servers that were killed, in the background.
fn settle_others(castra: &Castra, own: &StateDirectory, options: &McpOptions) {
    let others = slots::take_others(&options.place, own.path());
    if others.is_empty() {
        return;
    }
    let (castra, options) = (castra.clone(), options.sandboxes.clone());
    std::thread::spawn(move || {
        for slot in others {
            if let Err(error) = settle(&castra, &slot, &options) {
                tracing::warn!("sandboxes in {}: {error}", slot.path().display());
            }
        }
    });
}
