//! The server with hostile input.

mod fuzz;
