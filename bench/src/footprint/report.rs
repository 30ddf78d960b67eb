//! The tables, for people.

use super::back::Back;
use super::{Args, Figures};
use crate::cluster::DAEMONS;
use crate::failover::{Round, stall_figures};
use crate::usage::Memory;

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn parts(memory: Memory) -> String {
    format!(
        "{:>7.1} {:>7.1} {:>7.1} {:>7.1}",
        mib(memory.pss_kib),
        mib(memory.anon_kib),
        mib(memory.file_kib),
        mib(memory.shmem_kib)
    )
}

/// Prints everything.
#[allow(clippy::print_stdout, reason = "its output is its purpose")]
pub fn print(args: &Args, all: &[Figures]) {
    println!(
        "memory in MiB: PSS, of that heap, executable, shared memory; CPU in percent of a core"
    );
    for figures in all {
        println!(
            "\n{}: idle for {} s",
            figures.system,
            figures.idle_ms / 1000
        );
        for (number, node) in figures.idle.iter().enumerate() {
            for process in &node.processes {
                println!(
                    "  {:<6} {:<11} {}   CPU {:>5.2}",
                    number + 1,
                    process.name,
                    parts(process.memory),
                    process.cpu_of_a_core()
                );
            }
            println!(
                "  {:<6} {:<11} {}   CPU {:>5.2}",
                number + 1,
                "all",
                parts(node.memory()),
                node.cpu_of_a_core()
            );
        }
        if let Some(filled) = &figures.filled {
            println!(
                "{}: {} keys of {} bytes, written in {:.1} s ({} transactions tried again), settled after {}",
                figures.system,
                filled.keys,
                args.pair_bytes,
                filled.time_us as f64 / 1e6,
                filled.tried_again,
                filled
                    .settled_us
                    .map_or("more than a minute".into(), |us| format!(
                        "{:.1} s",
                        us as f64 / 1e6
                    )),
            );
            for (number, node) in filled.nodes.iter().enumerate() {
                for (name, memory) in &node.processes {
                    println!("  {:<6} {name:<11} {}", number + 1, parts(*memory));
                }
                println!("  {:<6} {:<11} {}", number + 1, "all", parts(node.after));
                println!(
                    "  {:<6} {:<11} {}",
                    number + 1,
                    "largest",
                    parts(node.largest)
                );
                println!(
                    "  {:<6} {:<11} {:.0} bytes of data and {:.0} of log a key",
                    number + 1,
                    "disk",
                    node.data_bytes as f64 / filled.keys as f64,
                    node.log_bytes as f64 / filled.keys as f64
                );
            }
        }
        for graceful in [true, false] {
            let mut some: Vec<&Back> = figures
                .back
                .iter()
                .filter(|back| back.graceful == graceful)
                .collect();
            some.sort_by_key(|back| back.read_us);
            if let (Some(middle), Some(last)) = (some.get(some.len() / 2), some.last()) {
                println!(
                    "{}: a node that was {} answers a linearizable read after {:.0} ms (median), {:.0} (maximum)",
                    figures.system,
                    if graceful { "stopped" } else { "killed" },
                    middle.read_us as f64 / 1000.0,
                    last.read_us as f64 / 1000.0
                );
            }
        }
        kills(&figures.kills_empty, "empty");
        kills(&figures.kills_filled, "filled");
    }
}

#[allow(clippy::print_stdout, reason = "its output is its purpose")]
fn kills(rounds: &[Round], when: &str) {
    for daemon in DAEMONS {
        let some: Vec<&Round> = rounds
            .iter()
            .filter(|round| round.daemon == daemon)
            .collect();
        if some.is_empty() {
            continue;
        }
        let (median, maximum) = stall_figures(&some);
        let unmoved = some.iter().filter(|round| round.unmoved()).count();
        println!(
            "  {when:<7} {daemon:<11} killed: longest delay a client {median:.0} ms (median), {maximum:.0} (maximum); \
             term and leader unchanged {unmoved}/{}",
            some.len()
        );
    }
}
