//! A minute of chaos with a seed, and the proof that the runner would notice a lost write, and who ends that nobody has ended.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

use mareedb_bench::net::Network;
use mareedb_chaos::bed::{Bed, Setup};
use mareedb_chaos::disk::Disk;
use mareedb_chaos::fault::named;
use mareedb_chaos::judge::LogMarks;
use mareedb_chaos::round::{Plan, Round, run};
use mareedb_chaos::workload::Plant;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use support::{block_on, server_with_faults};

fn plan(seed: u64, faults: &str, plant: Plant) -> Plan {
    Plan {
        seed,
        load: Duration::from_secs(8),
        rate: 400,
        clients: 4,
        faults: named(faults).expect("names of the table"),
        plant,
        leave: false,
    }
}

/// Runs rounds on one cluster of three.
async fn rounds(plans: &[Plan]) -> Vec<Round> {
    rounds_after(|_| (), plans).await
}

/// Runs rounds on one cluster of three, once something was done to it.
async fn rounds_after(before: impl FnOnce(&Bed), plans: &[Plan]) -> Vec<Round> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let setup = Setup {
        server: server_with_faults(),
        dir: dir.path().join("nodes"),
        nodes: 3,
        network: Network::possible(),
        disks: Disk::possible(dir.path()),
    };
    let (bed, _attendants): (Arc<Bed>, _) = Bed::start(&setup).await.expect("a cluster");
    before(&bed);
    let mut marks = LogMarks::default();
    let mut done = Vec::new();
    for plan in plans {
        done.push(run(&bed, plan, &mut marks).await.expect("a history"));
    }
    bed.stop().expect("nodes stop");
    done
}

#[test]
fn promises_hold_under_seeded_faults() {
    block_on(async {
        // Chosen so that each manner and most faults occur.
        let plans: Vec<Plan> = [11, 12, 13, 14]
            .map(|seed| plan(seed, "all", Plant::Nothing))
            .into();
        let rounds = rounds(&plans).await;
        for round in &rounds {
            assert!(
                round.findings.is_empty(),
                "cargo chaos --seed {} --rounds 1 --load-s 8 --rate 400\n{:#?}\n{:#?}",
                round.line.seed,
                round.findings,
                round.schedule
            );
            assert!(round.line.ops["ok"] > 300, "{:?}", round.line);
            assert_eq!(round.line.undecided, 0, "{:?}", round.line);
        }
        let faults: u64 = rounds
            .iter()
            .flat_map(|round| round.line.faults.values())
            .sum();
        assert!(faults >= 8, "{faults} faults in four rounds");
    });
}

#[test]
fn a_lost_write_would_be_noticed() {
    block_on(async {
        let plan = plan(1, "none", Plant::LostWrite);
        let rounds = rounds(&[plan]).await;
        let findings = &rounds[0].findings;
        assert!(
            findings.iter().any(|finding| finding.promise == "register"),
            "{findings:?}"
        );
        // What the driver was told to hide is all that is wrong.
        assert!(
            findings
                .iter()
                .all(|finding| ["register", "committed", "revisions"]
                    .contains(&finding.promise.as_str())),
            "{findings:?}"
        );
    });
}

#[test]
fn who_ends_that_nobody_has_ended_would_be_noticed() {
    block_on(async {
        let plan = Plan {
            load: Duration::from_secs(2),
            ..plan(2, "none", Plant::Nothing)
        };
        let plant = |bed: &Bed| {
            let (_, log) = bed.logs().swap_remove(0);
            let mut log = File::options().append(true).open(log).expect("a log");
            writeln!(log, "storaged ended: exit code 70 (why): it was planted").expect("a line");
            bed.node(1).signal(Signal::SIGKILL);
        };
        let rounds = rounds_after(plant, &[plan]).await;
        let findings = &rounds[0].findings;
        let promises: BTreeSet<&str> = findings
            .iter()
            .map(|finding| finding.promise.as_str())
            .collect();
        assert_eq!(promises, BTreeSet::from(["ENDS", "EXIT"]), "{findings:?}");
        assert!(
            findings
                .iter()
                .any(|finding| finding.evidence.contains("it was planted")),
            "{findings:?}"
        );
    });
}
