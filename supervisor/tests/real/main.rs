//! The supervisor with real processes.

mod harness;
mod notify;
mod restarts;
mod starting;
mod stopping;
