//! Both ends of Castra's SSH, connected over 127.0.0.1 as the current user.

#![cfg(target_os = "linux")]

mod arguments;
mod copy;
mod exec;
mod foreign;
mod guest;
mod hostile;
mod login;
mod older;
mod pressure;
mod quoting;
mod terminal;
