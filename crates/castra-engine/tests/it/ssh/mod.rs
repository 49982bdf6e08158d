//! Both ends of Castra's SSH and of its stream ports, connected as the current user.

#![cfg(target_os = "linux")]

mod directory;
mod foreign;
mod guest;
mod hostile;
mod login;
mod older;
mod over_ports;
mod over_ssh;
mod own_server;
mod quoting;
mod streams;
