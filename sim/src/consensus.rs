//! A life of consensusd: the real host with the real tasks, and the loop around it.

use crate::cluster::Cluster;
use crate::executor::yield_now;
use futures::future::select;
use mareedb_consensusd::host::{Host, Lanes};
use mareedb_ipc::world::Timer;
use mareedb_ipc::{Lane, Role, Waiter};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The main loop turns at least so often, as in consensusd.
const TICK: Duration = Duration::from_millis(20);

/// Lives until it is killed.
pub async fn run(cluster: Rc<Cluster>, number: usize) {
    let node = &cluster.nodes[number];
    let mut inheritance = cluster.attach(number, Role::Consensus);
    let wake = Arc::new(Notify::new());
    let lanes = Lanes::take(&mut inheritance);
    let mut host = Host::new(
        node.config.clone(),
        format!("node{}", number + 1),
        inheritance.board(),
        inheritance.peer_board(Role::Storage),
        lanes,
        inheritance.sender(Role::Storage, Lane::Log(0)),
        wake.clone(),
    );
    inheritance.ring_all_bells();
    host.hello();
    loop {
        let quiet = match host.turn() {
            Ok(quiet) => quiet,
            Err(error) => {
                cluster.violated("RING", format!("consensusd of node{}: {error}", number + 1));
                return;
            }
        };
        cluster.observe_host(number, &host);
        if cluster.startled.get() == Some(number) && host.is_starting() {
            cluster.startled.set(None);
            cluster.kill_and_restart(number, Role::Storage);
        }
        if !quiet {
            yield_now().await;
            continue;
        }
        let rung = pin!(cluster.world.rung(number, Waiter::Consensus));
        let woken = pin!(wake.notified());
        select(select(rung, woken), Timer::after(TICK)).await;
    }
}
