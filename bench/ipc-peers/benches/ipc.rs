//! `cargo bench-ipc`; see the library.

fn main() -> std::process::ExitCode {
    mareedb_bench_ipc::main()
}
