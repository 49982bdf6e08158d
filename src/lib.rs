//! The command line of Castra: a thin layer over [`castra_engine`].

pub mod cli;
