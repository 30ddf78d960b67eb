//! A storaged in a process of its own, and what its consensusd does to append.

use crate::report::{Figure, percentile};
use bytes::Bytes;
use mareedb_config::Config;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry, ToStorage};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, ReplicaId};
use mareedb_ipc::{
    Bell, BoardReader, Extras, Gauge, Lane, Receiver, RingSizes, Role, Sender, Topology, Waiter,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Before anything is measured.
const WARM: Duration = Duration::from_millis(100);
/// So many bytes of entries stay in the log. Then they are truncated, so that segments are used again, as they are on a node
/// that has run for a while, instead of being made beside what is measured.
const KEPT_BYTES: usize = 4 << 20;
/// storaged shows its latencies so often.
const SHOWN: Duration = Duration::from_millis(500);

pub struct Appender {
    _node: NodeInProcess,
    child: Child,
    sender: Sender,
    receiver: Receiver,
    bell: Bell,
    board: BoardReader,
    next_index: u64,
    kept: usize,
}

impl Drop for Appender {
    fn drop(&mut self) {
        // Its directory is removed next.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Appender {
    /// Starts storaged with its data there.
    pub fn start(dir: &Path) -> Appender {
        let mut config = Config::default();
        dir.to_str()
            .expect("a path in UTF-8")
            .clone_into(&mut config.server.data_dir);
        let ipc = &config.ipc;
        let topology = Topology {
            shards: 1,
            readers: 1,
            sizes: RingSizes {
                log: ipc.log_ring_bytes,
                client: ipc.client_ring_bytes,
                peer: ipc.peer_ring_bytes,
                bulk: ipc.bulk_ring_bytes,
                read: ipc.read_ring_bytes,
            },
        };
        let text = serde_json::to_string(&config).expect("a configuration is plain data");
        let node = NodeInProcess::new(topology, &text);
        let mut inheritance = node.attach(Role::Consensus);
        let plan = node.memory().plan(Role::Storage, &Extras::default());
        let pass = |flags: FdFlag| {
            for fd in &plan.fds {
                // SAFETY: `node` owns the descriptors of its plan and outlives this closure.
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                fcntl(fd, FcntlArg::F_SETFD(flags)).expect("a descriptor is passed on");
            }
        };
        // Nothing else starts a process meanwhile.
        pass(FdFlag::empty());
        let child = Command::new(std::env::current_exe().expect("this executable"))
            .env(plan.env.0, plan.env.1)
            .spawn()
            .expect("a process");
        pass(FdFlag::FD_CLOEXEC);
        let mut appender = Appender {
            child,
            sender: inheritance.sender(Role::Storage, Lane::Log(0)),
            receiver: inheritance.receiver(Role::Storage, Lane::Log(0)),
            bell: inheritance.bell(Waiter::Consensus),
            board: node.memory().read_board(Role::Storage),
            next_index: 0,
            kept: 0,
            _node: node,
        };
        appender.sender_takes(&ToStorage::Hello {
            epoch: 1,
            number: 1,
        });
        let end = appender.sender_takes(&ToStorage::CreateReplica {
            group: FIRST_DATA_GROUP,
            replica: ReplicaId(1),
            range: KeyRange::whole(),
        });
        appender.sender.publish();
        appender.wait_for(end);
        appender
    }

    fn sender_takes(&mut self, message: &ToStorage) -> u64 {
        self.sender
            .try_send(message)
            .expect("the ring is whole")
            .expect("the ring has room for all that is ever open")
    }

    /// Waits until the head has passed `end`, and returns the head.
    fn wait_for(&mut self, end: u64) -> u64 {
        loop {
            let head = self.sender.head().expect("the ring is whole");
            if head >= end {
                break head;
            }
            if self.sender.arm_progress(head).expect("the ring is whole")
                && !self.bell.wait(Some(Duration::from_secs(10)))
            {
                panic!("storaged is gone: {:?}", self.child.try_wait());
            }
            // What it says of itself.
            while let Some((_, end)) = self.receiver.try_recv_encoded().expect("the ring is whole")
            {
                self.receiver.release(end);
            }
        }
    }

    /// Sends one append and returns the end of its record.
    fn append(&mut self, body: &Bytes) -> u64 {
        let group = FIRST_DATA_GROUP;
        if self.kept > KEPT_BYTES {
            self.kept = 0;
            self.next_index = 0;
            self.sender_takes(&ToStorage::Truncate { group, last: None });
        }
        let index = self.next_index;
        self.next_index += 1;
        self.kept += body.len();
        let entry = LogEntry {
            position: LogPosition { term: 1, index },
            body: EntryBody::Normal(body.clone()),
        };
        self.sender_takes(&ToStorage::Append {
            group,
            entries: vec![entry],
        })
    }

    /// Keeps so many appends open for a while.
    pub fn run(&mut self, concurrent: usize, bytes: usize, time: Duration) -> Figure {
        let body = Bytes::from(vec![b'v'; bytes]);
        let mut open: VecDeque<(u64, Instant)> = VecDeque::with_capacity(concurrent);
        let mut took = Vec::new();
        let began = Instant::now();
        let (mut first, mut done) = (None, 0_u64);
        let mut flushes = 0;
        loop {
            let now = Instant::now();
            if first.is_none() && now - began > WARM {
                first = Some(now);
                flushes = self.board.get(Gauge::Flushes);
            }
            if first.is_some_and(|first| now - first > time) {
                break;
            }
            while open.len() < concurrent {
                let end = self.append(&body);
                open.push_back((end, now));
            }
            self.sender.publish();
            let oldest = open.front().map_or(0, |(end, _)| *end);
            let head = self.wait_for(oldest);
            let now = Instant::now();
            while let Some((end, since)) = open.front().copied()
                && end <= head
            {
                open.pop_front();
                if first.is_some() {
                    done += 1;
                    took.push(u64::try_from((now - since).as_nanos()).unwrap_or(u64::MAX));
                }
            }
        }
        let elapsed = first.map_or(time, |first| first.elapsed());
        let flushes = self.board.get(Gauge::Flushes) - flushes;
        let last = open.back().map_or(0, |(end, _)| *end);
        self.wait_for(last);
        // So that what is shown are writes of this run only.
        std::thread::sleep(SHOWN);
        Figure {
            rate: done as f64 / elapsed.as_secs_f64(),
            p50_us: percentile(&mut took, 50),
            p99_us: percentile(&mut took, 99),
            per_write: done as f64 / flushes.max(1) as f64,
            write_p50_us: self.board.get(Gauge::FsyncUsP50) as f64,
        }
    }
}
