//! The table of faults: what `--faults` can name.

use mareedb_bench::cluster::DaemonName;

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL of a daemon.
    Kill(DaemonName),
    /// SIGSTOP of a daemon, SIGCONT later, if the supervisor has not killed it before.
    Stop(DaemonName),
    /// SIGKILL of a daemon whenever it is back.
    CrashLoop(DaemonName),
    /// SIGKILL of all three daemons of a node.
    KillDaemons,
    /// SIGSTOP of the supervisor; one of its daemons dies meanwhile, and nobody is there to notice.
    StopSupervisor,
    /// SIGKILL of the supervisor, which ends the node.
    KillNode,
    /// SIGTERM, then a start.
    RestartNode,
    /// SIGSTOP of all four processes.
    StopNode,
    /// SIGKILL of all nodes at once.
    KillAll,
    /// SIGKILL of a majority.
    KillMajority,
    /// A minority without the leader, or with it, cut off from the rest.
    Halves,
    /// The leader cut off from all.
    IsolateLeader,
    /// One node hears another one and is not heard.
    OneWay,
    /// Two sides that only one node can reach.
    Bridge,
    /// A node whose links come and go.
    Flap,
    /// All links of a node take longer.
    Delay,
    /// All links of a node carry little.
    Slow,
    /// All links of a node lose packets.
    Loss,
    /// The connections of a node are reset.
    Reset,
    /// A node refuses new connections as if nobody listened: false evidence of its death.
    Refuse,
    /// The node's file system takes no write for a while.
    StallDisk,
    /// It takes writes only now and then.
    StutterDisk,
    /// It has no room.
    FillDisk,
    /// Each write of the log takes longer.
    SlowWrites,
    /// A write of the log fails with EIO; the node ends, and comes back when the operator has looked.
    FailWrite,
    /// No segment of the log can be made.
    FailCreate,
    /// Half of a write is made, and storaged is gone.
    TearWrite,
    /// A write is not made, and storaged is gone.
    LoseWrite,
    /// A node's wall clock jumps.
    JumpClock,
    /// A word or a record in the memory of two daemons is spoilt.
    CorruptRing,
    /// storaged stands still while more is written than its ring holds.
    FillRing,
    /// A daemon gets little more memory than it has.
    LimitMemory,
    /// A node comes back without its data, is refused, and gets it back.
    RemoveData,
}

/// What a fault needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// Nodes in network namespaces.
    Network,
    /// File systems of the nodes' own.
    Disk,
    /// Control groups for memory.
    Groups,
    /// Nodes that were built with faults to be asked for.
    Seam,
}

/// How much a fault takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A daemon, which its supervisor brings back at once: nobody need notice.
    Daemon,
    /// A node, or its way to the others.
    Node,
    /// More than a cluster can bear: nobody can be served.
    Cluster,
}

impl Reach {
    /// How long nobody may be able to write when only this happens, in ms: LIVE-1, and LIVE-2 with the default settings (lease, election
    /// timeout, 500 ms).
    pub fn gap_limit_ms(self) -> Option<u64> {
        match self {
            Reach::Daemon => Some(200),
            Reach::Node => Some(2_500),
            Reach::Cluster => None,
        }
    }

    /// A gap that no neighbour on the same machine explains, in ms.
    pub fn gap_alarm_ms(self) -> Option<(&'static str, u64)> {
        match self {
            Reach::Daemon => Some(("LIVE-1", 2_000)),
            Reach::Node => Some(("LIVE-2", 5_000)),
            Reach::Cluster => None,
        }
    }
}

/// The line of a name.
pub fn of(name: &str) -> Option<&'static Fault> {
    FAULTS.iter().find(|fault| fault.name == name)
}

/// A line of the table.
#[derive(Debug)]
pub struct Fault {
    /// What `--faults` calls it.
    pub name: &'static str,
    /// What it does.
    pub action: Action,
    /// What it needs.
    pub need: Need,
    /// What it takes away.
    pub reach: Reach,
    /// From and to how long it lasts, in ms; a moment: (0, 0).
    pub lasts_ms: (u64, u64),
    /// How often it is drawn beside others.
    pub weight: u64,
}

const fn line(
    name: &'static str,
    action: Action,
    reach: Reach,
    lasts_ms: (u64, u64),
    weight: u64,
) -> Fault {
    let need = match action {
        Action::Halves
        | Action::IsolateLeader
        | Action::OneWay
        | Action::Bridge
        | Action::Flap
        | Action::Delay
        | Action::Slow
        | Action::Loss
        | Action::Reset
        | Action::Refuse => Need::Network,
        Action::StallDisk | Action::StutterDisk | Action::FillDisk => Need::Disk,
        Action::LimitMemory => Need::Groups,
        Action::SlowWrites
        | Action::FailWrite
        | Action::FailCreate
        | Action::TearWrite
        | Action::LoseWrite
        | Action::JumpClock => Need::Seam,
        _ => Need::Nothing,
    };
    Fault {
        name,
        action,
        need,
        reach,
        lasts_ms,
        weight,
    }
}

/// All faults.
pub const FAULTS: &[Fault] = &[
    line(
        "kill-gatewayd",
        Action::Kill("gatewayd"),
        Reach::Daemon,
        (0, 0),
        12,
    ),
    line(
        "kill-consensusd",
        Action::Kill("consensusd"),
        Reach::Daemon,
        (0, 0),
        12,
    ),
    line(
        "kill-storaged",
        Action::Kill("storaged"),
        Reach::Daemon,
        (0, 0),
        12,
    ),
    line("kill-daemons", Action::KillDaemons, Reach::Node, (0, 0), 6),
    line(
        "stop-gatewayd",
        Action::Stop("gatewayd"),
        Reach::Node,
        (20, 1600),
        4,
    ),
    line(
        "stop-consensusd",
        Action::Stop("consensusd"),
        Reach::Node,
        (20, 1600),
        4,
    ),
    line(
        "stop-storaged",
        Action::Stop("storaged"),
        Reach::Node,
        (20, 1600),
        4,
    ),
    line(
        "loop-gatewayd",
        Action::CrashLoop("gatewayd"),
        Reach::Node,
        (300, 1500),
        1,
    ),
    line(
        "loop-consensusd",
        Action::CrashLoop("consensusd"),
        Reach::Node,
        (300, 1500),
        1,
    ),
    line(
        "loop-storaged",
        Action::CrashLoop("storaged"),
        Reach::Node,
        (300, 1500),
        1,
    ),
    line("node-kill", Action::KillNode, Reach::Node, (0, 2500), 5),
    line("node-stop", Action::StopNode, Reach::Node, (50, 3000), 4),
    line(
        "node-restart",
        Action::RestartNode,
        Reach::Node,
        (0, 1000),
        3,
    ),
    line(
        "supervisor-stop",
        Action::StopSupervisor,
        Reach::Node,
        (100, 2500),
        3,
    ),
    line("all-kill", Action::KillAll, Reach::Cluster, (0, 500), 2),
    line(
        "majority-kill",
        Action::KillMajority,
        Reach::Cluster,
        (0, 1500),
        1,
    ),
    line("net-halves", Action::Halves, Reach::Node, (300, 4000), 5),
    line(
        "net-leader",
        Action::IsolateLeader,
        Reach::Node,
        (300, 4000),
        5,
    ),
    line("net-oneway", Action::OneWay, Reach::Node, (300, 4000), 4),
    line("net-bridge", Action::Bridge, Reach::Node, (300, 4000), 3),
    line("net-flap", Action::Flap, Reach::Node, (800, 4000), 3),
    line("net-delay", Action::Delay, Reach::Node, (500, 4000), 3),
    line("net-slow", Action::Slow, Reach::Node, (500, 4000), 2),
    line("net-loss", Action::Loss, Reach::Node, (500, 3000), 3),
    line("net-reset", Action::Reset, Reach::Node, (50, 1000), 4),
    line("net-refuse", Action::Refuse, Reach::Node, (200, 2000), 2),
    line("disk-stall", Action::StallDisk, Reach::Node, (50, 4000), 4),
    line(
        "disk-stutter",
        Action::StutterDisk,
        Reach::Node,
        (300, 3000),
        2,
    ),
    line("disk-full", Action::FillDisk, Reach::Node, (200, 2500), 3),
    line("io-slow", Action::SlowWrites, Reach::Node, (100, 3000), 3),
    line("io-fail", Action::FailWrite, Reach::Node, (0, 1000), 2),
    line(
        "io-nospace",
        Action::FailCreate,
        Reach::Node,
        (300, 3000),
        2,
    ),
    line("io-tear", Action::TearWrite, Reach::Node, (0, 0), 4),
    line("io-lose", Action::LoseWrite, Reach::Node, (0, 0), 4),
    line("clock-jump", Action::JumpClock, Reach::Node, (50, 6000), 4),
    line(
        "ring-corrupt",
        Action::CorruptRing,
        Reach::Node,
        (100, 300),
        4,
    ),
    line("ring-full", Action::FillRing, Reach::Node, (200, 950), 1),
    line(
        "memory-limit",
        Action::LimitMemory,
        Reach::Node,
        (200, 2500),
        2,
    ),
    line("data-removed", Action::RemoveData, Reach::Node, (0, 500), 1),
];

/// The faults that a list names, in the table's order: `all`, names, and first parts of names such as `net`.
///
/// # Errors
/// A word that names nothing; the message lists what there is.
pub fn named(list: &str) -> Result<Vec<&'static Fault>, String> {
    let words: Vec<&str> = list.split(',').map(str::trim).collect();
    let names = |word: &str, fault: &Fault| {
        let rest = fault.name.strip_prefix(word);
        word == "all" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    for word in &words {
        if *word != "none" && !FAULTS.iter().any(|fault| names(word, fault)) {
            let known: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
            return Err(format!(
                "--faults: '{word}' names none of all, none, {}",
                known.join(", ")
            ));
        }
    }
    Ok(FAULTS
        .iter()
        .filter(|fault| words.iter().any(|word| names(word, fault)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_alone_in_families_and_together() {
        let names = |list| {
            named(list)
                .unwrap()
                .iter()
                .map(|f| f.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names("all").len(), FAULTS.len());
        assert_eq!(
            names("node-kill, kill-storaged"),
            ["kill-storaged", "node-kill"]
        );
        assert_eq!(names("node"), ["node-kill", "node-stop", "node-restart"]);
        assert_eq!(names("none"), Vec::<&str>::new());
        assert!(named("node-").is_err());
        assert!(named("kill-gate").unwrap_err().contains("kill-gatewayd"));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FAULTS.len());
    }
}
