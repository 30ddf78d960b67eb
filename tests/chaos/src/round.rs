//! One round: clients act, faults strike, then the cluster is healed and everything is judged.

use crate::bed::Bed;
use crate::client::{Api, Client, Reply, Request, Step, Target};
use crate::fault::Fault;
use crate::gaps::{Acks, Happened};
use crate::inject;
use crate::judge::{self, Finding, LogMarks};
use crate::random::Random;
use crate::results::Line;
use crate::schedule::Schedule;
use crate::trees::{self, Left};
use crate::workload::{Plant, Stage, act, read_all};
use mareedb_history::{History, Outcome, Recorder};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Keys removed in one transaction.
const REMOVED: usize = 100;

/// What a round is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed of the schedule and of all choices.
    pub seed: u64,
    /// How long clients act.
    pub load: Duration,
    /// Operations a second, all clients together, at most.
    pub rate: u32,
    /// Clients of a node; half of them speak gRPC.
    pub clients: u8,
    /// What may happen.
    pub faults: Vec<&'static Fault>,
    /// A violation to be found.
    pub plant: Plant,
    /// The keys stay, to be read again after later rounds.
    pub leave: bool,
}

/// What came of a round.
pub struct Round {
    /// The figures.
    pub line: Line,
    /// What was done.
    pub schedule: Schedule,
    /// What was seen.
    pub history: History,
    /// Broken promises.
    pub findings: Vec<Finding>,
    /// What it has left behind, if it was to.
    pub left: Option<Left>,
}

impl Round {
    /// Something else was found once it was over.
    pub fn also(&mut self, finding: Option<Finding>) {
        if let Some(finding) = finding {
            self.line.violations.push(finding.promise.clone());
            self.findings.push(finding);
        }
    }
}

/// Runs a round on a healthy cluster.
///
/// # Errors
/// The runner itself fails: what it recorded is no history.
pub async fn run(bed: &Arc<Bed>, plan: &Plan, marks: &mut LogMarks) -> Result<Round, String> {
    let load_ms = u64::try_from(plan.load.as_millis()).unwrap_or(u64::MAX);
    let mut schedule = Schedule::new(plan.seed, bed.count(), load_ms, &plan.faults);
    schedule
        .injections
        .retain(|injection| inject::possible(bed, injection));
    let recorder = Recorder::in_memory();
    let label = format!("s{}", plan.seed);
    let stage = Stage::new(
        label.clone(),
        recorder.clone(),
        bed.names(),
        plan.clients,
        plan.plant,
    );
    let acks = Arc::new(Acks::new(bed.count()));
    let targets = Arc::new(targets(bed));
    let root = Random::new(plan.seed);
    let new_client = |number: usize| {
        let api = if (number / bed.count()).is_multiple_of(2) {
            Api::Rest
        } else {
            Api::Grpc
        };
        let random = root.fork("way", number as u64);
        let home = number % bed.count();
        let (targets, acks) = (targets.clone(), acks.clone());
        Client::new(
            number as u64,
            api,
            home,
            targets,
            acks,
            label.clone(),
            random,
        )
    };
    let clients = bed.count() * usize::from(plan.clients);
    let per_s = f64::from(plan.rate) / clients as f64;
    let acting: Vec<_> = (0..clients)
        .map(|number| {
            let random = root.fork("client", number as u64);
            tokio::spawn(act(stage.clone(), new_client(number), random, per_s))
        })
        .collect();
    let striking: Vec<_> = schedule
        .injections
        .iter()
        .map(|injection| {
            tokio::spawn(inject::carry_out(
                bed.clone(),
                injection.clone(),
                acks.began(),
            ))
        })
        .collect();
    tokio::time::sleep_until((acks.began() + plan.load).into()).await;
    stage.stop();
    let mut happened: Vec<Happened> = Vec::new();
    for strike in striking {
        happened.extend(strike.await.map_err(|error| error.to_string())?);
    }
    let end_ms = acks.now_ms().min(load_ms);
    bed.heal();
    for client in acting {
        client.await.map_err(|error| error.to_string())?;
    }
    let mut findings = Vec::new();
    let mut left = None;
    let healed = judge::alive(bed, &label).await;
    let random = root.fork("client", clients as u64);
    if healed.is_ok() {
        let unread = read_all(stage, new_client(clients), random, judge::HEAL_LIMIT).await;
        findings.extend(unread.into_iter().map(|what| {
            let why = format!("a healed cluster does not answer for {what}");
            Finding::new("LIVE-4", why)
        }));
        findings.extend(judge::one_leader_a_term(bed).await);
        match trees::same(bed, &mut readers(bed, &label), &label).await {
            Ok(held) => left = Some(held),
            Err(finding) => findings.push(finding),
        }
    }
    let heal_ms = match healed {
        Ok(took) => u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        Err(finding) => {
            findings.push(finding);
            0
        }
    };
    findings.extend(bed.take_findings());
    let exits = bed.take_exits();
    findings.extend(judge::exits(&exits));
    happened.sort_by_key(|fault| fault.began_ms);
    let (broken, ends) = marks.broken_invariants(bed, &happened);
    findings.extend(broken);
    let (refused, unreadable) = acks.met();
    findings.extend(judge::refusals(&refused, &exits, &happened));
    findings.extend(
        unreadable
            .into_iter()
            .map(|what| Finding::new("ANSWER", what)),
    );
    let history = recorder.take().map_err(|error| error.to_string())?;
    // It computes for a while, and other tasks (who leads, who has ended) must go on.
    let judged = history.clone();
    let reports = tokio::task::spawn_blocking(move || judge::history(&judged))
        .await
        .map_err(|error| error.to_string())?;
    findings.extend(judge::violations(&reports));
    let mut line = Line::new(plan, bed.count(), &schedule, &happened);
    for (at, gap_ms) in acks.gaps(&happened, end_ms) {
        line.gap(happened[at].kind, gap_ms);
        findings.extend(judge::gap(&happened[at], gap_ms));
    }
    for (_, daemon, code) in ends {
        line.end(&daemon, code);
    }
    for operation in history.operations() {
        line.count(match &operation.outcome {
            Outcome::Ok(_) => "ok",
            Outcome::Failed(_) => "failed",
            Outcome::Unknown(_) => "unknown",
        });
    }
    line.judged(&reports, heal_ms, &findings);
    if findings.is_empty() && !plan.leave {
        remove_all(new_client(clients), &label).await;
    }
    Ok(Round {
        left: left.filter(|_| plan.leave),
        line,
        schedule,
        history,
        findings,
    })
}

fn targets(bed: &Bed) -> Vec<Target> {
    (0..bed.count())
        .map(|at| {
            let node = bed.node(at);
            Target {
                rest: node.rest(),
                grpc: SocketAddr::from((node.host, mareedb_api::GRPC_PORT)),
            }
        })
        .collect()
}

/// A reader for each node; it asks that one only.
fn readers(bed: &Bed, label: &str) -> Vec<Client> {
    let (targets, acks) = (Arc::new(targets(bed)), Arc::new(Acks::new(bed.count())));
    (0..bed.count())
        .map(|at| {
            let (targets, acks) = (targets.clone(), acks.clone());
            let random = Random::new(at as u64);
            Client::new(
                at as u64,
                Api::Rest,
                at,
                targets,
                acks,
                label.to_owned(),
                random,
            )
        })
        .collect()
}

/// Reads what an earlier round has left behind from every node, and removes it.
///
/// # Errors
/// It is not what it was.
pub async fn look_again(bed: &Bed, left: &Left) -> Result<(), Finding> {
    let mut clients = readers(bed, &left.label);
    trees::kept(bed, &mut clients, left).await?;
    remove_all(clients.swap_remove(0), &left.label).await;
    Ok(())
}

/// Removes a round's keys, so that a long run does not fill the disk. What fails stays.
async fn remove_all(mut client: Client, label: &str) {
    let request = Request::Range {
        prefix: format!("{label}/"),
        stale: false,
    };
    let Ok(Reply::Items(items)) = client.ask(&request, false).await else {
        return;
    };
    for some in items.chunks(REMOVED) {
        let steps = some.iter().map(|item| Step::Delete(item.key.clone()));
        let request = Request::Txn(Vec::new(), steps.collect());
        // The next round removes nothing of this one, and nobody reads it.
        let _ = client.ask(&request, true).await;
    }
}
