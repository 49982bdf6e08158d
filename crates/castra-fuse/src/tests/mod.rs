//! The server, driven by requests as a guest's kernel makes them.

mod ahead;
mod attacks;
mod changes;
mod guest;
mod life;
mod model;
mod operations;
mod pretence;
