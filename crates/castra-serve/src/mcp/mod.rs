//! MCP server (Model Context Protocol): sandboxes as tools of coding agents.
//!
//! A client starts the server as its child, sends requests to its stdin, and reads answers from its
//! stdout.
//!
//! ```text
//! stdin ─► stdio ─► tools ─► sandboxes ─► Fleet
//!                     └────► sandbox ───► GuestSession
//! ```
//!
//! Each server has a *slot*, a directory of sandboxes. Commands without a sandbox get a throw-away
//! one. Sandboxes that a client starts outlive the server, paused, until they are stopped:
//!
//! ```text
//!                 stdin ends, SIGTERM           the next server of the slot
//! throw-away ───► removed                       (removed here after kill -9)
//! started ──────► paused                    ──► listed, and resumed on request
//! ```

mod capture;
mod failure;
mod leftovers;
mod ports;
mod program;
mod server;
mod slots;
mod stdio;
mod tools;

pub use server::{McpOptions, McpServer};
pub use slots::Place;
