//! The server, driven by requests as a guest's kernel makes them.

mod attacks;
mod guest;
mod life;
mod model;
mod operations;
