//! `castra serve`: sandboxes for programs, by the E2B API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use castra_engine::Castra;
use castra_engine::context::working_directory;
use castra_engine::error::Result;
use castra_engine::layout::UserStateLayout;
use castra_serve::{Limits, Listen, Machine, Options, SandboxOptions, Server};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{SandboxesArgs, ServeArgs};
use super::context::CommandContext;

/// Interval of looks whether the server is asked to end.
const LOOK: Duration = Duration::from_millis(50);

/// A server that serves.
#[derive(Serialize, JsonSchema)]
pub(super) struct Serving {
    /// URL for clients, `E2B_API_URL` and `E2B_SANDBOX_URL`; null for a Unix socket.
    url: Option<String>,
    /// Path of the Unix socket; null for a TCP address.
    socket: Option<PathBuf>,
    /// Token of its clients, `E2B_API_KEY`.
    api_key: String,
    /// Directory of the sandboxes.
    directory: PathBuf,
}

/// Parses an address, or the path of a Unix socket.
///
/// # Errors
/// The word is neither.
pub(super) fn parse_listen(word: &str) -> std::result::Result<Listen, String> {
    match word.strip_prefix("unix:") {
        Some("") => Err("unix: needs a path".to_owned()),
        Some(path) => Ok(Listen::Unix(path.into())),
        None => word.parse().map(Listen::Tcp).map_err(|_| {
            "not an address and a port, such as 127.0.0.1:7300 or [::1]:0, nor unix:PATH".to_owned()
        }),
    }
}

/// Serves until the user interrupts it.
pub(super) fn run(serve: &ServeArgs, context: &CommandContext) -> Result<ExitCode> {
    let directory = match &serve.state {
        Some(state) => working_directory()?.join(state),
        None => own_directory(context, UserStateLayout::serve, ".castra-serve")?,
    };
    let castra = Castra::of(context.runtime.clone());
    let options = Options {
        listen: serve.listen.clone(),
        directory: directory.clone(),
        sandboxes: sandbox_options(&serve.sandboxes, serve.max_vms, serve.pool, context)?,
    };
    let server = Server::bind(&castra, options)?;
    announce(&server, &serve.listen, directory, context)?;
    server.serve(interrupted(context))?;
    Ok(ExitCode::SUCCESS)
}

/// Waits until the user interrupts the command.
pub(super) fn interrupted(context: &CommandContext) -> impl Future<Output = ()> + Send + use<> {
    let cancel = context.runtime.cancel.clone();
    async move {
        while !cancel.is_cancelled() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Returns a server's directory in the user's state.
///
/// # Errors
/// The user has neither that nor a home, below which the directory is hidden otherwise.
pub(super) fn own_directory(
    context: &CommandContext,
    directory: impl FnOnce(&UserStateLayout) -> PathBuf,
    hidden: &str,
) -> Result<PathBuf> {
    match &context.runtime.user_state {
        Some(own) => Ok(directory(own)),
        None => Ok(context.runtime.environment.home()?.join(hidden)),
    }
}

/// Returns the settings of a server's sandboxes. Templates are all images that are known here.
///
/// # Errors
/// The directory's `castra.toml` has mistakes.
pub(super) fn sandbox_options(
    args: &SandboxesArgs,
    max_vms: usize,
    pool: usize,
    context: &CommandContext,
) -> Result<SandboxOptions> {
    let config = context.config()?;
    let catalog = config.catalog();
    let mut images: Vec<String> = catalog.images().iter().map(|image| image.id.clone()).collect();
    images.extend(config.images.keys().cloned());
    images.sort();
    images.dedup();
    let memory_budget = args.memory_budget.unwrap_or_else(three_quarters_of_memory);
    Ok(SandboxOptions {
        settings: Castra::of(context.runtime.clone()).sandbox().images_of(config),
        images,
        machine: Machine {
            cpus: args.cpus,
            memory_mib: args.memory >> 20,
            disk_mib: args.disk >> 20,
        },
        limits: Limits { sandboxes: max_vms, memory_mib: memory_budget >> 20 },
        pool,
    })
}

/// Prints what clients need.
fn announce(
    server: &Server,
    listen: &Listen,
    directory: PathBuf,
    context: &CommandContext,
) -> Result<()> {
    let printer = context.printer;
    let api_key = server.token().to_owned();
    let url = server.address().map(url);
    let socket = match listen {
        Listen::Unix(path) => Some(path.clone()),
        Listen::Tcp(_) => None,
    };
    let mut text = String::new();
    match (&url, &socket) {
        (Some(url), _) => {
            printer.success(&format!("serving sandboxes at {url}; Ctrl-C ends the server"));
            text = format!("export E2B_API_URL={url}\nexport E2B_SANDBOX_URL={url}\n");
        }
        (None, Some(path)) => {
            let path = path.display();
            printer.success(&format!("serving sandboxes at {path}; Ctrl-C ends the server"));
        }
        (None, None) => {}
    }
    text.push_str(&format!("export E2B_API_KEY={api_key}\n"));
    if let Listen::Tcp(address) = listen
        && !address.ip().is_loopback()
    {
        printer.warning(
            "other machines can reach this server: all that goes to it and comes from it, its \
            token included, is readable on the way",
        );
    }
    printer.show(&Serving { url, socket, api_key, directory }, &text)?;
    Ok(())
}

fn url(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("http://127.0.0.1:{}", address.port()),
        false => format!("http://{address}"),
    }
}

#[cfg(target_os = "linux")]
fn three_quarters_of_memory() -> u64 {
    let system = rustix::system::sysinfo();
    system.totalram.saturating_mul(system.mem_unit.max(1).into()) / 4 * 3
}

/// A stand-in: elsewhere the kernel is not asked.
#[cfg(not(target_os = "linux"))]
fn three_quarters_of_memory() -> u64 {
    4 << 30
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_sockets_are_understood() {
        assert!(matches!(parse_listen("127.0.0.1:0"), Ok(Listen::Tcp(_))));
        assert!(matches!(parse_listen("[::1]:80"), Ok(Listen::Tcp(_))));
        assert_eq!(parse_listen("unix:/a/b"), Ok(Listen::Unix("/a/b".into())));
        for word in ["unix:", "7300", "localhost:80", ":80", ""] {
            assert!(parse_listen(word).is_err(), "{word}");
        }
    }
}
