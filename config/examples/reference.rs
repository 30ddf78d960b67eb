//! Writes the reference page to standard output.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

fn main() {
    print!("{}", mareedb_config::reference::page());
}
