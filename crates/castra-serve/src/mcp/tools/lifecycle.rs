//! Tools for the life of sandboxes: start, list, stop, pause, resume and fork.

use std::collections::BTreeMap;
use std::time::Duration;

use rmcp::handler::server::tool::schema_for_type;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::CallToolResult;
use rmcp::schemars::{self, JsonSchema};
use rmcp::{tool, tool_router};
use serde::{Deserialize, Serialize};

use super::{Tools, result};
use crate::mcp::failure::{Failure, check_range};
use crate::mcp::leftovers::is_throwaway;
use crate::sandboxes::{OnTimeout, Paused, SandboxRecord, Wish, time};

/// Time of a sandbox that has no limit: ten years.
const NO_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Memory that a sandbox can have, in MiB.
const MIN_MEMORY_MIB: u64 = 64;
const MAX_MEMORY_MIB: u64 = 1024 * 1024;

/// Most forks by one call.
const MAX_FORKS: usize = 16;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StartSandbox {
    /// Template: the image and what is installed in it
    template: Option<String>,
    /// Memory, in MiB; the first sandbox with another amount than usual takes a minute or two
    #[schemars(range(min = MIN_MEMORY_MIB, max = MAX_MEMORY_MIB))]
    memory_mib: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OneSandbox {
    /// Identifier of the sandbox, from start_sandbox, fork_sandbox or list_sandboxes
    sandbox: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ForkSandbox {
    /// Identifier of the sandbox to copy
    sandbox: String,
    /// Number of copies: 1 by default, at most 16
    #[schemars(range(min = 1, max = MAX_FORKS))]
    count: Option<usize>,
}

/// A sandbox, as clients see it.
#[derive(Debug, Serialize, JsonSchema)]
struct SandboxInfo {
    /// Identifier, for other tools
    sandbox: String,
    /// State: running or paused
    state: State,
    template: String,
    /// Network: full or isolated
    network: Network,
    cpus: u32,
    memory_mib: u64,
    /// Start, in RFC 3339
    started: String,
    /// Addresses on this machine that lead to its ports, by the port
    forwarded: BTreeMap<u16, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum State {
    Running,
    Paused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Network {
    Full,
    Isolated,
}

#[derive(Debug, Serialize, JsonSchema)]
struct SandboxList {
    sandboxes: Vec<SandboxInfo>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Forks {
    /// Copies that run
    sandboxes: Vec<SandboxInfo>,
    /// Reasons why others do not
    errors: Vec<String>,
}

/// A sandbox whose state has changed.
#[derive(Debug, Serialize, JsonSchema)]
struct Changed {
    sandbox: String,
    /// New state: running, paused or removed
    state: String,
}

#[tool_router(router = lifecycle_router, vis = "pub(super)")]
impl Tools {
    /// Starts a Linux VM, in which files and processes stay from call to call until stop_sandbox.
    /// It takes about half a second; the first one of a template takes a minute or two.
    #[tool(
        annotations(title = "Start a sandbox", destructive_hint = false, open_world_hint = false),
        output_schema = schema_for_type::<SandboxInfo>(),
    )]
    async fn start_sandbox(
        &self,
        Parameters(wanted): Parameters<StartSandbox>,
    ) -> Result<CallToolResult, Failure> {
        if let Some(mib) = wanted.memory_mib {
            check_range("memory_mib", mib, MIN_MEMORY_MIB..=MAX_MEMORY_MIB)?;
        }
        let made = self.sandboxes.create(self.wish(wanted.template, wanted.memory_mib)).await?;
        let info = self.info(made.record());
        result(&info, format!("{} runs", info.sandbox))
    }

    /// Lists the sandboxes that run or are paused, those of earlier sessions included.
    #[tool(
        annotations(title = "List sandboxes", read_only_hint = true, open_world_hint = false),
        output_schema = schema_for_type::<SandboxList>(),
    )]
    async fn list_sandboxes(&self) -> Result<CallToolResult, Failure> {
        let mut records = self.sandboxes.list();
        records.retain(|record| !is_throwaway(record));
        records.sort_by(|one, other| {
            (one.started_unix_ms, &one.id).cmp(&(other.started_unix_ms, &other.id))
        });
        let sandboxes = records.into_iter().map(|record| self.info(record)).collect();
        let list = SandboxList { sandboxes };
        let lines: Vec<String> = list.sandboxes.iter().map(SandboxInfo::line).collect();
        let text = if lines.is_empty() { "no sandboxes".to_owned() } else { lines.join("\n") };
        result(&list, text)
    }

    /// Ends a sandbox and removes everything of it. What is needed of it must be read before.
    #[tool(
        annotations(title = "Stop a sandbox", destructive_hint = true, open_world_hint = false),
        output_schema = schema_for_type::<Changed>(),
    )]
    async fn stop_sandbox(
        &self,
        Parameters(OneSandbox { sandbox }): Parameters<OneSandbox>,
    ) -> Result<CallToolResult, Failure> {
        self.sandboxes.kill(&sandbox).await?;
        self.ports.remove(&sandbox);
        changed(sandbox, "removed")
    }

    /// Pauses a sandbox: its memory is saved to the disk, and it takes no memory and no CPU until
    /// resume_sandbox.
    #[tool(
        annotations(title = "Pause a sandbox", destructive_hint = false, open_world_hint = false),
        output_schema = schema_for_type::<Changed>(),
    )]
    async fn pause_sandbox(
        &self,
        Parameters(OneSandbox { sandbox }): Parameters<OneSandbox>,
    ) -> Result<CallToolResult, Failure> {
        self.sandboxes.pause(&sandbox, Paused::WithMemory).await?;
        changed(sandbox, "paused")
    }

    /// Resumes a paused sandbox, with the processes that ran in it.
    #[tool(
        annotations(title = "Resume a sandbox", destructive_hint = false, open_world_hint = false),
        output_schema = schema_for_type::<Changed>(),
    )]
    async fn resume_sandbox(
        &self,
        Parameters(OneSandbox { sandbox }): Parameters<OneSandbox>,
    ) -> Result<CallToolResult, Failure> {
        self.sandboxes.resume(&sandbox, false).await?;
        changed(sandbox, "running")
    }

    /// Copies a sandbox with its files and everything that runs in it. Each copy continues from
    /// the same state, by itself: to try several ways from one point.
    #[tool(
        annotations(title = "Fork a sandbox", destructive_hint = false, open_world_hint = false),
        output_schema = schema_for_type::<Forks>(),
    )]
    async fn fork_sandbox(
        &self,
        Parameters(ForkSandbox { sandbox, count }): Parameters<ForkSandbox>,
    ) -> Result<CallToolResult, Failure> {
        let count = count.unwrap_or(1);
        check_range("count", count, 1..=MAX_FORKS)?;
        let mut forks = Forks { sandboxes: Vec::new(), errors: Vec::new() };
        for fork in self.sandboxes.fork(&sandbox, count, NO_LIMIT).await? {
            match fork {
                Ok(fork) => forks.sandboxes.push(self.info(fork.record())),
                Err(error) => forks.errors.push(Failure::from(error).message().to_owned()),
            }
        }
        if forks.sandboxes.is_empty() {
            return Err(Failure::new(forks.errors.join("\n")));
        }
        let lines = forks.sandboxes.iter().map(SandboxInfo::line).chain(forks.errors.clone());
        let text = lines.collect::<Vec<_>>().join("\n");
        result(&forks, text)
    }
}

impl Tools {
    /// Returns the wish for a sandbox that stays until it is stopped.
    pub(super) fn wish(&self, template: Option<String>, memory_mib: Option<u64>) -> Wish {
        Wish {
            template: template.unwrap_or_else(|| self.template.clone()),
            timeout: NO_LIMIT,
            metadata: BTreeMap::new(),
            environment: BTreeMap::new(),
            has_token: false,
            on_timeout: OnTimeout::Pause,
            auto_resume: false,
            is_isolated: self.is_isolated,
            memory_mib,
        }
    }

    fn info(&self, record: SandboxRecord) -> SandboxInfo {
        let forwarded = self.ports.of(&record.id).into_iter();
        SandboxInfo {
            forwarded: forwarded.map(|(port, address)| (port, address.to_string())).collect(),
            sandbox: record.id,
            state: if record.paused.is_some() { State::Paused } else { State::Running },
            template: record.template,
            network: if record.shape.is_isolated { Network::Isolated } else { Network::Full },
            cpus: record.shape.cpus,
            memory_mib: record.shape.memory_mib,
            started: time(record.started_unix_ms),
        }
    }
}

impl SandboxInfo {
    fn line(&self) -> String {
        let state = match self.state {
            State::Running => "running",
            State::Paused => "paused",
        };
        let Self { sandbox, template, memory_mib, started, .. } = self;
        let forwarded = self.forwarded.iter();
        let ports: String =
            forwarded.map(|(port, address)| format!(", port {port} at {address}")).collect();
        format!("{sandbox} {state}, {template}, {memory_mib} MiB, since {started}{ports}")
    }
}

fn changed(sandbox: String, state: &str) -> Result<CallToolResult, Failure> {
    let text = format!("{sandbox} {state}");
    result(&Changed { sandbox, state: state.to_owned() }, text)
}
