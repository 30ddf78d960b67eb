//! The node as tests want it: the same program, built so that faults can be asked for. See storaged/src/io/faults.rs.

#[path = "main.rs"]
mod program;

fn main() -> std::process::ExitCode {
    program::main()
}
