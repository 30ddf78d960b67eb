//! What the whole-system tests share: a cluster of the executable under test, on addresses of its own.

use mareedb_bench::cluster::{Addresses, Cluster, Options};
use std::path::PathBuf;
use std::process::{Command, Output};
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
    let addresses = Addresses::claim(count);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::prepare(&Options {
        server: PathBuf::from(env!("CARGO_BIN_EXE_maree-db-server")),
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
    let mut bed = bed(3, "");
    bed.cluster.start_all().expect("nodes start");
    bed.cluster
        .await_healthy(PATIENCE)
        .await
        .unwrap_or_else(|why| panic!("{why}"));
    bed
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

/// The command line client, built now: cargo does not build another package's executable for a test.
pub fn cli(endpoint: &str, arguments: &[&str]) -> Output {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let path = BUILT.get_or_init(|| {
        let status = Command::new(env!("CARGO"))
            // The whole workspace: alone it would be built with other features, and all it needs once more.
            .args(["build", "--quiet", "--locked", "--workspace"])
            .args(["--bin", "maree-db-cli"])
            .status()
            .expect("cargo runs");
        assert!(status.success(), "maree-db-cli does not build");
        PathBuf::from(env!("CARGO_BIN_EXE_maree-db-server")).with_file_name("maree-db-cli")
    });
    Command::new(path)
        .args(["--endpoint", endpoint])
        .args(arguments)
        .env_remove("MAREEDB_ENDPOINT")
        .output()
        .expect("maree-db-cli runs")
}
