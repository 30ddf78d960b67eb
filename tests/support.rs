//! What the whole-system tests share: a cluster of the executable under test, on addresses of its own.

use mareedb_bench::cluster::{Addresses, Cluster, Node, Options};
use mareedb_bench::load::{Load, check};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// A generous bound: a loaded machine is slow, a hang is for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster with its directory and addresses, which live as long as it does.
pub struct Bed {
    /// The nodes.
    pub cluster: Cluster,
    /// Where they live.
    _dir: TempDir,
    /// Their addresses, claimed as long as they run.
    _addresses: Addresses,
}

/// Prepares `count` nodes; nothing is started.
pub fn bed(count: u8, config: &str) -> Bed {
    bed_of(env!("CARGO_BIN_EXE_maree-db-server").into(), count, config)
}

/// Prepares `count` nodes of an executable; nothing is started.
pub fn bed_of(server: PathBuf, count: u8, config: &str) -> Bed {
    let addresses = Addresses::claim(count);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::prepare(&Options {
        server,
        dir: dir.path().to_owned(),
        hosts: addresses.hosts.clone(),
        config: config.to_owned(),
    })
    .expect("configurations can be written");
    Bed {
        cluster,
        _dir: dir,
        _addresses: addresses,
    }
}

/// Three nodes that have formed a healthy cluster.
pub async fn healthy_three() -> Bed {
    healthy(bed(3, "")).await
}

/// Starts all nodes and waits until they have formed a healthy cluster.
pub async fn healthy(mut bed: Bed) -> Bed {
    bed.cluster.start_all().expect("nodes start");
    bed.cluster
        .await_healthy(PATIENCE)
        .await
        .unwrap_or_else(|why| panic!("{why}"));
    bed
}

/// Stops a load and holds what every node has against what was acknowledged (DUR-1, ONCE-1); and no request has failed.
pub async fn settle(bed: &Bed, load: Load) {
    let plan = load.plan().clone();
    let summary = load.stop().await;
    assert_eq!(summary.failures, Vec::<String>::new(), "failed requests");
    assert!(summary.acknowledged > 0);
    for node in &bed.cluster.nodes {
        let verdict = check(&plan, &summary, node.rest()).await.unwrap();
        assert_eq!(verdict.lost, Vec::<String>::new(), "lost, by {}", node.name);
        assert_eq!(
            verdict.twice,
            Vec::<String>::new(),
            "applied twice, by {}",
            node.name
        );
        assert_eq!(verdict.found, summary.acknowledged);
    }
}

/// Runs a test on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// The node that can be asked for faults, see storaged/src/io/faults.rs.
pub fn server_with_faults() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let features = ["--features", "maree-db-server/faults"];
    BUILT
        .get_or_init(|| built("maree-db-server-faults", &features))
        .clone()
}

/// Puts a file into a node's data directory that is read at any moment: whole or not at all.
pub fn put_file(node: &Node, name: &str, text: &str) {
    let new = node.data.join(format!("{name}.new"));
    fs::write(&new, text).expect("a data directory");
    fs::rename(new, node.data.join(name)).expect("a data directory");
}

/// Whether a cluster's status is degraded, for this reason, which names a node.
pub fn says(status: &Value, code: &str, name: &str) -> bool {
    let reasons = status["reasons"].as_array();
    status["verdict"] == "degraded"
        && reasons.into_iter().flatten().any(|reason| {
            let message = reason["message"].as_str().unwrap_or_default();
            reason["code"] == code && message.contains(name)
        })
}

/// Whether every group has a leader, and that is not this node.
pub fn leads_nothing(status: &Value, name: &str) -> bool {
    let elsewhere = |group: &Value| group["leader"] != name && !group["leader"].is_null();
    let groups = status["groups"].as_array();
    groups.is_some_and(|groups| groups.iter().all(elsewhere))
}

fn built(name: &str, arguments: &[&str]) -> PathBuf {
    let status = Command::new(env!("CARGO"))
        // The whole workspace: alone it would be built with other features, and all it needs once more.
        .args(["build", "--quiet", "--locked", "--workspace"])
        // It has the daemons built with switches that no node may have.
        .args(["--exclude", "mareedb-sim", "--bin", name])
        .args(arguments)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "{name} does not build");
    PathBuf::from(env!("CARGO_BIN_EXE_maree-db-server")).with_file_name(name)
}

/// The command line client, built now: cargo does not build another package's executable for a test.
pub fn cli(endpoint: &str, arguments: &[&str]) -> Output {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let path = BUILT.get_or_init(|| built("maree-db-cli", &[]));
    Command::new(path)
        .args(["--endpoint", endpoint])
        .args(arguments)
        .env_remove("MAREEDB_ENDPOINT")
        .output()
        .expect("maree-db-cli runs")
}
