//! The node: one executable, four roles.
//!
//! Started by hand or by systemd it is the supervisor; started by a supervisor, which shows by what it inherits, it is the daemon
//! of the role that it was given. Nothing else lives here.

mod daemon;
mod logging;
mod node;
mod output;
mod settings;

use mareedb_ipc::Inheritance;

/// The daemons allocate per request, and free on other threads; measured beside the C library's in docs/performance.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Read by the allocator before its first use. A node is meant to be small, and beside others: two arenas instead of four a core, as few
/// threads here allocate much at the same time; and what was freed goes back to the system after a second, by a thread of the
/// allocator's own, so that a daemon that has become idle gives back what its busy time took.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_CONFIG: &[u8] =
    b"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,background_thread:true,max_background_threads:1\0";

// A build of the whole workspace turns the simulation's switches on in the daemons; such a build is for tests.
const _: () = assert!(
    !mareedb_ipc::world::SIMULATED || cfg!(debug_assertions),
    "build the server without the simulation: cargo build --release -p maree-db-server"
);

/// The program.
pub fn main() -> std::process::ExitCode {
    // Built by a feature, which every executable of the package gets.
    if cfg!(feature = "faults") && !env!("CARGO_BIN_NAME").ends_with("-faults") {
        eprintln!(
            "error: this executable was built with faults for tests; build it without --features faults"
        );
        return mareedb_ipc::ExitCode::Usage.into();
    }
    if Inheritance::present() {
        daemon::run().into()
    } else {
        node::run().into()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::{CStr, c_char, c_int, c_void};

    unsafe extern "C" {
        fn _rjem_mallctl(
            name: *const c_char,
            old: *mut c_void,
            old_len: *mut usize,
            new: *mut c_void,
            new_len: usize,
        ) -> c_int;
    }

    /// A number of the allocator's, as many bytes as `T` has.
    fn option<T: Default>(name: &CStr) -> T {
        let mut value = T::default();
        let mut len = size_of::<T>();
        // SAFETY: the name ends with a zero, and the allocator writes at most `len` bytes, and only if it has exactly so many.
        let failed = unsafe {
            _rjem_mallctl(
                name.as_ptr(),
                (&raw mut value).cast(),
                &raw mut len,
                std::ptr::null_mut(),
                0,
            )
        };
        assert_eq!(failed, 0, "{name:?}");
        value
    }

    #[test]
    fn the_allocator_has_read_its_configuration() {
        assert_eq!(option::<u32>(c"opt.narenas"), 2);
        assert_eq!(option::<isize>(c"opt.dirty_decay_ms"), 1000);
        assert_eq!(option::<isize>(c"opt.muzzy_decay_ms"), 0);
        assert_eq!(option::<u8>(c"opt.background_thread"), 1);
    }
}
