//! A life of storaged: the real shard, log and state machines; the device, and how long the threads take, are simulated.

use crate::cluster::Cluster;
use crate::executor::{Process, yield_now};
use futures::future::select;
use mareedb_ipc::world::Timer;
use mareedb_ipc::{ExitCode, Role, Waiter};
use mareedb_storaged::log::Write;
use mareedb_storaged::shard::Ended;
use mareedb_storaged::shard::simulated::{AGAIN, Did, SimShard, Thread};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The shard's main task turns at least so often, as in storaged.
const TURN: Duration = Duration::from_millis(40);
/// How often the flushing thread looks. Less often than in storaged, which costs no safety and much time.
const LOOK: Duration = Duration::from_millis(500);
/// How often files are merged; less often than in storaged, too.
const MERGE: Duration = Duration::from_secs(10);

/// What a disk that has failed says.
const EIO: i32 = 5;

struct Life {
    cluster: Rc<Cluster>,
    process: Process,
    shard: Rc<RefCell<SimShard>>,
    /// Threads that work.
    busy: RefCell<BTreeSet<Thread>>,
}

/// Lives until it is killed, or ends by itself.
pub async fn run(cluster: Rc<Cluster>, process: Process) {
    let node = &cluster.nodes[process.node];
    let mut inheritance = cluster.attach(process.node, Role::Storage);
    let disk = node.disk.clone();
    let opened = SimShard::open(
        &mut inheritance,
        &node.config,
        Arc::new(move || Box::new(disk.clone())),
    );
    let shard = match opened {
        Ok(shard) => Rc::new(RefCell::new(shard)),
        Err(ended) => {
            cluster.storage_ended(process, &ended);
            return;
        }
    };
    *node.shard.borrow_mut() = Some(shard.clone());
    let life = Rc::new(Life {
        cluster: cluster.clone(),
        process,
        shard,
        busy: RefCell::default(),
    });
    cluster.world.spawn(Some(process), keep(life.clone()));
    if let Err(ended) = life.turns().await {
        life.end(&ended);
    }
}

impl Life {
    async fn turns(self: &Rc<Self>) -> Result<(), Ended> {
        loop {
            let (quiet, writes) = {
                let mut shard = self.shard.borrow_mut();
                let quiet = shard.turn()?;
                (quiet, shard.begun())
            };
            for write in writes {
                self.write(write);
            }
            self.cluster
                .observe_storage(self.process.node, &self.shard.borrow());
            self.wake_threads();
            if !quiet {
                yield_now().await;
                continue;
            }
            let rung = self.cluster.world.rung(self.process.node, Waiter::Shard(0));
            select(pin!(rung), Timer::after(TURN)).await;
        }
    }

    /// A write flies: it is durable when it has landed, and a crash before leaves any part of it.
    fn write(self: &Rc<Self>, write: Write) {
        let cluster = &self.cluster;
        let node = &cluster.nodes[self.process.node];
        let flight = node
            .disk
            .with(|disk| disk.start(write.location.segment, write.location.offset, &write.bytes));
        let stall = node
            .stalled_until
            .get()
            .saturating_sub(cluster.world.now_ns());
        let takes = stall + cluster.write_ns();
        let (life, lsn) = (Rc::downgrade(self), write.lsn);
        cluster.world.after(takes, move || {
            if let Some(life) = life.upgrade() {
                life.landed(flight, lsn);
            }
        });
    }

    fn landed(self: &Rc<Self>, flight: u64, lsn: u64) {
        let cluster = &self.cluster;
        if !cluster.world.is_alive(self.process) {
            return;
        }
        let node = &cluster.nodes[self.process.node];
        let stall = node
            .stalled_until
            .get()
            .saturating_sub(cluster.world.now_ns());
        if stall > 0 {
            // It began before the disk stalled.
            let life = Rc::downgrade(self);
            cluster.world.after(stall, move || {
                if let Some(life) = life.upgrade() {
                    life.landed(flight, lsn);
                }
            });
            return;
        }
        let result = if node.broken.get() {
            node.disk.with(|disk| disk.fail(flight));
            Err(std::io::Error::from_raw_os_error(EIO))
        } else {
            node.disk.with(|disk| disk.finish(flight));
            Ok(())
        };
        self.shard.borrow_mut().ended(lsn, result);
        cluster.world.ring_bell(self.process.node, Waiter::Shard(0));
    }

    fn wake_threads(self: &Rc<Self>) {
        for thread in Thread::ALL {
            let due = self.shard.borrow().has_work(thread);
            if due && self.busy.borrow_mut().insert(thread) {
                let life = self.clone();
                self.cluster
                    .world
                    .spawn(Some(self.process), async move { life.serve(thread).await });
            }
        }
    }

    async fn serve(self: Rc<Self>, thread: Thread) {
        loop {
            Timer::after(Duration::from_nanos(self.cluster.work_ns())).await;
            let did = self.shard.borrow_mut().work(thread);
            match did {
                Ok(Did::Nothing) => break,
                Ok(Did::Work) => {}
                Ok(Did::Full) => {
                    Timer::after(AGAIN).await;
                    self.shard.borrow().again();
                }
                Err(ended) => {
                    self.end(&ended);
                    return;
                }
            }
        }
        self.busy.borrow_mut().remove(&thread);
    }

    fn end(&self, ended: &Ended) {
        self.shard.borrow().tell(ended);
        self.cluster.storage_ended(self.process, ended);
    }
}

/// Flushes and merges now and then.
async fn keep(life: Rc<Life>) {
    let mut since_merge = Duration::ZERO;
    loop {
        Timer::after(LOOK).await;
        since_merge += LOOK;
        let mut done = life.shard.borrow_mut().look();
        if done.is_ok() && since_merge >= MERGE {
            since_merge = Duration::ZERO;
            done = life.shard.borrow_mut().merge();
        }
        if let Err(ended) = done {
            life.end(&ended);
            return;
        }
    }
}

/// Whether the supervisor leaves the node down after this end.
pub fn is_final(ended: &Ended) -> bool {
    matches!(
        ended,
        Ended::Failed(
            ExitCode::DiskFault | ExitCode::LogDamaged | ExitCode::StateDamaged,
            _
        )
    )
}
