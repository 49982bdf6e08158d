//! `run_command` and `run_code`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use castra_engine::session::sftp::Request;
use rmcp::handler::server::tool::schema_for_type;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::CallToolResult;
use rmcp::schemars::{self, JsonSchema};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, tool, tool_router};
use serde::Deserialize;

use super::{Tools, result};
use crate::envd::{Files, Upload};
use crate::mcp::failure::{Failure, check_range};
use crate::mcp::leftovers::throwaway;
use crate::mcp::program::{
    DEFAULT_LIMIT_SECS, DEFAULT_OUTPUT_BYTES, MAX_LIMIT_SECS, MAX_OUTPUT_BYTES, Program,
    ProgramResult, USER,
};
use crate::random;
use crate::sandboxes::{OnTimeout, Sandbox, Wish};

/// Time of a throw-away sandbox beyond that of its command.
const MARGIN: Duration = Duration::from_secs(120);

/// Finds the first of its arguments that is a program.
const FIND_FIRST: &str = r#"for i do command -v "$i" && exit; done; exit 1"#;

/// Finds all of its arguments that are programs.
const FIND_ALL: &str = r#"for i do command -v "$i" >/dev/null && echo "$i"; done; exit 0"#;

/// Place, input and limits of a program.
#[derive(Debug, Deserialize, JsonSchema)]
struct How {
    /// Sandbox to run it in; without one, in a fresh sandbox, which is removed afterwards
    sandbox: Option<String>,
    /// Directory to run it in, by default /root
    cwd: Option<String>,
    /// Text for its stdin, which is empty otherwise
    stdin: Option<String>,
    /// Seconds after which it is killed: 120 by default, at most 3600
    #[schemars(range(min = 1, max = MAX_LIMIT_SECS))]
    timeout_secs: Option<u64>,
    /// Bytes of stdout and of stderr to return; the middle of longer output is left out: 16384 by
    /// default, at most 1048576
    #[schemars(range(min = 1, max = MAX_OUTPUT_BYTES))]
    max_output_bytes: Option<usize>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct RunCommand {
    /// Command for /bin/sh
    command: String,
    #[serde(flatten)]
    how: How,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct RunCode {
    /// Language of the code
    language: Language,
    /// The code, which runs as a file of its own
    code: String,
    #[serde(flatten)]
    how: How,
}

/// Language whose interpreter an image may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Language {
    #[serde(alias = "python3")]
    Python,
    Sh,
    Bash,
    #[serde(alias = "js", alias = "node")]
    JavaScript,
    Ruby,
    Perl,
    Php,
    Lua,
}

impl Language {
    const ALL: [Self; 8] = [
        Self::Python,
        Self::Sh,
        Self::Bash,
        Self::JavaScript,
        Self::Ruby,
        Self::Perl,
        Self::Php,
        Self::Lua,
    ];

    /// Returns the names of its interpreters, the best one first, and the extension of its files.
    fn interpreters(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Python => (&["python3", "python"], "py"),
            Self::Sh => (&["sh"], "sh"),
            Self::Bash => (&["bash"], "sh"),
            Self::JavaScript => (&["node", "nodejs", "bun"], "js"),
            Self::Ruby => (&["ruby"], "rb"),
            Self::Perl => (&["perl"], "pl"),
            Self::Php => (&["php"], "php"),
            Self::Lua => (&["lua", "lua5.4", "lua5.3", "luajit"], "lua"),
        }
    }
}

impl How {
    fn limit(&self) -> Result<Duration, Failure> {
        let secs = self.timeout_secs.unwrap_or(DEFAULT_LIMIT_SECS);
        check_range("timeout_secs", secs, 1..=MAX_LIMIT_SECS)?;
        Ok(Duration::from_secs(secs))
    }

    fn output_bytes(&self) -> Result<usize, Failure> {
        let bytes = self.max_output_bytes.unwrap_or(DEFAULT_OUTPUT_BYTES);
        check_range("max_output_bytes", bytes, 1..=MAX_OUTPUT_BYTES)?;
        Ok(bytes)
    }

    /// Returns the program that runs as this says.
    fn program<const N: usize>(&self, arguments: [&str; N]) -> Result<Program, Failure> {
        Ok(Program {
            directory: self.cwd.clone().filter(|path| !path.is_empty()),
            stdin: self.stdin.clone(),
            limit: self.limit()?,
            output_bytes: self.output_bytes()?,
            ..Program::new(arguments)
        })
    }
}

#[tool_router(router = run_router, vis = "pub(super)")]
impl Tools {
    /// Runs a shell command in a Linux VM: in a fresh one, which is removed afterwards, or in a
    /// sandbox that start_sandbox returned. A command that is to outlive its call needs
    /// `nohup ... >/dev/null 2>&1 &`, and a sandbox.
    #[tool(
        annotations(title = "Run a command", open_world_hint = false),
        output_schema = schema_for_type::<ProgramResult>(),
    )]
    async fn run_command(
        &self,
        Parameters(RunCommand { command, how }): Parameters<RunCommand>,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResult, Failure> {
        let program = how.program(["/bin/sh", "-c", &command])?;
        let cancelled = context.ct.cancelled_owned();
        let run = async |sandbox: Arc<Sandbox>| program.run(&sandbox, cancelled).await;
        let ended = self.in_sandbox(&how, run).await?;
        result(&ended, ended.text())
    }

    /// Runs code in a Linux VM, by the interpreter that the sandbox's image has for its language:
    /// in a fresh one, which is removed afterwards, or in a sandbox that start_sandbox returned.
    #[tool(
        annotations(title = "Run code", open_world_hint = false),
        output_schema = schema_for_type::<ProgramResult>(),
    )]
    async fn run_code(
        &self,
        Parameters(RunCode { language, code, how }): Parameters<RunCode>,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResult, Failure> {
        // Before a sandbox is made for it.
        how.program([""])?;
        let cancelled = context.ct.cancelled_owned();
        let run = async |sandbox: Arc<Sandbox>| {
            let interpreter = interpreter(&sandbox, language).await?;
            let (_, extension) = language.interpreters();
            let name = random::name().map_err(|error| Failure::new(error.to_string()))?;
            let path = format!("/tmp/code-{name}.{extension}");
            let files = Files::open(&sandbox, USER).await?;
            let mut upload = Upload::begin(&files, &path).await?;
            upload.write(code.into_bytes().into()).await?;
            upload.finish().await?;
            let ended = how.program([&*interpreter, &path])?.run(&sandbox, cancelled).await;
            // It may have removed itself, or the sandbox may be gone.
            let _ = files.sftp.done(Request::Remove { path: Bytes::from(path) }).await;
            ended
        };
        let ended = self.in_sandbox(&how, run).await?;
        result(&ended, ended.text())
    }
}

impl Tools {
    /// Runs something in the sandbox that is named, or in a fresh one.
    async fn in_sandbox<T>(
        &self,
        how: &How,
        run: impl AsyncFnOnce(Arc<Sandbox>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if let Some(id) = &how.sandbox {
            return run(self.sandbox(id)?).await;
        }
        let wish = Wish {
            metadata: throwaway(),
            on_timeout: OnTimeout::Kill,
            timeout: how.limit()? + MARGIN,
            ..self.wish(None, None)
        };
        let sandbox = self.sandboxes.create(wish).await?;
        let ended = run(Arc::clone(&sandbox)).await;
        // One that has ended is as wanted.
        let _ = self.sandboxes.kill(&sandbox.record().id).await;
        ended
    }
}

/// Returns the path of a language's interpreter in a sandbox.
///
/// # Errors
/// Its image has none.
async fn interpreter(sandbox: &Sandbox, language: Language) -> Result<String, Failure> {
    let find = async |script: &str, names: &[&str]| {
        let arguments = [&["/bin/sh", "-c", script, "sh"], names].concat();
        Program::new(arguments).run(sandbox, std::future::pending()).await
    };
    let (names, _) = language.interpreters();
    let found = find(FIND_FIRST, names).await?;
    if found.exit_code == Some(0) {
        return Ok(found.stdout.trim().to_owned());
    }
    let all: Vec<&str> =
        Language::ALL.iter().flat_map(|language| language.interpreters().0).copied().collect();
    let others = find(FIND_ALL, &all).await?.stdout;
    let others: Vec<&str> = others.split_whitespace().collect();
    Err(Failure::new(format!(
        "the image of this sandbox has no {}; it has {}. Use one of these, or start_sandbox with \
        a template whose image has it",
        names.join(" or "),
        others.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn how(value: serde_json::Value) -> How {
        serde_json::from_value(value).expect("arguments")
    }

    #[test]
    fn limits_have_defaults_and_bounds() {
        let default = how(json!({})).program(["true"]).expect("a program");
        assert_eq!(default.limit, Duration::from_secs(120));
        assert_eq!((default.output_bytes, default.stdin), (16 * 1024, None));
        for (name, bad) in [("timeout_secs", 0), ("timeout_secs", 3601), ("max_output_bytes", 0)] {
            let refused = how(json!({ name: bad })).program(["true"]).err().expect("refused");
            assert!(refused.message().starts_with(&format!("{name} is {bad}")), "{refused:?}");
        }
    }

    #[test]
    fn languages_have_the_names_that_models_use() {
        for (name, language) in [
            ("python", Language::Python),
            ("node", Language::JavaScript),
            ("javascript", Language::JavaScript),
            ("sh", Language::Sh),
        ] {
            assert_eq!(serde_json::from_value::<Language>(json!(name)).ok(), Some(language));
        }
    }
}
