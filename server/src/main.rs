//! The node: one executable, four roles.
//!
//! Started by hand or by systemd it is the supervisor; started by a supervisor, which shows by what it inherits, it is the daemon of the role
//! that it was given. Nothing else lives here.

mod daemon;
mod logging;
mod node;
mod output;
mod settings;

use mareedb_ipc::Inheritance;

/// The daemons allocate per request, and free on other threads; measured beside the C library's in docs/performance.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    if Inheritance::present() {
        daemon::run().into()
    } else {
        node::run().into()
    }
}
