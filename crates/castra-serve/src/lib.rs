//! Castra's server: sandboxes for programs, by the E2B API, on this machine.
//!
//! A sandbox is a VM of a [`Fleet`](castra_engine::Fleet). One HTTP server, by HTTP/1.1 and by
//! HTTP/2, answers for the *control plane*, which makes sandboxes, and for the *sandboxes*
//! themselves: each request for one names it, and has its token.
//!
//! ```text
//! client ─► guard ─┬─► control ─► sandboxes ─► Fleet            (X-API-Key)
//!                  └─► envd ────► sandbox ───► GuestSession     (E2b-Sandbox-Id, X-Access-Token)
//! ```
//!
//! An MCP server, on stdin and stdout, offers the same sandboxes to coding agents as tools.
//!
//! | Module | Task |
//! | --- | --- |
//! | `guard` | who may ask: host names, origins and tokens |
//! | `sandboxes` | sandboxes, their records, time limits and templates |
//! | `control` | the control plane's requests |
//! | `envd` | requests for a sandbox: processes, files, and what listens on its ports |
//! | `mcp` | tools of the MCP server |

mod body;
mod control;
mod directory;
mod envd;
mod error;
mod guard;
mod mcp;
mod random;
mod sandboxes;
mod server;
mod token;

pub use error::ServeError;
pub use mcp::{McpOptions, McpServer, Place};
pub use sandboxes::{Limits, Machine, SandboxOptions};
pub use server::{Listen, Options, Server};
