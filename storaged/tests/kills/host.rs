//! A node with a real storaged, and its consensusd played by the test.

use mareedb_config::Config;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::storage::{
    FromStorage, NodeRecord, ReplicaState, StorageAnswer, StorageRequest, ToStorage,
};
use mareedb_ipc::{Bell, BoardReader, Cell, Extras, Gauge, Lane, Receiver, Role, Sender, Waiter};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// Far longer than any machine needs.
const STALL: Duration = Duration::from_secs(60);

/// What storaged says of itself at a Hello.
pub struct Bootstrapped {
    pub replicas: Vec<ReplicaState>,
    pub records: Vec<NodeRecord>,
}

pub struct Host {
    pub node: NodeInProcess,
    pub dir: tempfile::TempDir,
    pub board: BoardReader,
    sender: Sender,
    receiver: Receiver,
    bell: Bell,
    child: Option<Child>,
    /// Without an answer, by number.
    open: BTreeMap<u64, StorageRequest>,
    next_request: u64,
    next_epoch: u64,
    /// Those that came, with what they answer.
    pub answers: Vec<(u64, StorageRequest, StorageAnswer)>,
    up: bool,
    bootstrapped: Option<(u64, Bootstrapped)>,
}

impl Host {
    pub fn new() -> Host {
        Host::within(&std::env::temp_dir())
    }

    /// With its data in a new directory there.
    pub fn within(directory: &Path) -> Host {
        let dir = tempfile::tempdir_in(directory).unwrap();
        let mut config = Config::default();
        config.server.data_dir = dir.path().to_str().unwrap().to_owned();
        config.storage.segment_bytes = 1 << 20;
        config.storage.log_cache_bytes = 256 << 10;
        config.storage.unflushed_bytes_max = 256 << 10;
        let node = NodeInProcess::small(&serde_json::to_string(&config).unwrap());
        let mut inheritance = node.attach(Role::Consensus);
        Host {
            board: node.memory().read_board(Role::Storage),
            sender: inheritance.sender(Role::Storage, Lane::Log(0)),
            receiver: inheritance.receiver(Role::Storage, Lane::Log(0)),
            bell: inheritance.bell(Waiter::Consensus),
            node,
            dir,
            child: None,
            open: BTreeMap::new(),
            next_request: 1,
            next_epoch: 1,
            answers: Vec::new(),
            up: false,
            bootstrapped: None,
        }
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none());
        let plan = self.node.memory().plan(Role::Storage, &Extras::default());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(plan.env.0, plan.env.1);
        let fds = plan.fds;
        // SAFETY: only plain system calls between fork and exec, no allocation; the descriptors are open in the child.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                for fd in &fds {
                    let fd = BorrowedFd::borrow_raw(*fd);
                    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                }
                Ok(())
            });
        }
        self.up = false;
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until it says that it serves.
    pub fn await_ready(&mut self) {
        let begin = Instant::now();
        while self.board.get(Gauge::Ready) == 0 {
            self.check_alive();
            assert!(begin.elapsed() < STALL, "storaged is never ready");
            self.pump(true);
        }
    }

    /// SIGKILL, whatever it is doing.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(9),
            "storaged ended by itself: {status}, {}",
            self.words()
        );
    }

    /// SIGTERM, and what it ends with.
    pub fn stop(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        kill(
            Pid::from_raw(child.id().try_into().unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        self.ended()
    }

    /// Waits for the end.
    pub fn ended(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(begin.elapsed() < STALL, "storaged does not end");
            self.pump(true);
        }
    }

    pub fn words(&self) -> String {
        self.board.read(Cell::LastWords).unwrap_or_default()
    }

    /// Takes what has come; waits a little for more if there is nothing.
    pub fn pump(&mut self, wait: bool) {
        let mut some = false;
        while let Some((message, end)) = self.receiver.try_recv::<FromStorage>().unwrap() {
            some = true;
            self.receiver.release(end);
            match message {
                FromStorage::Up { .. } => {
                    self.up = true;
                    let again: Vec<(u64, StorageRequest)> = self
                        .open
                        .iter()
                        .map(|(n, body)| (*n, body.clone()))
                        .collect();
                    for (request, body) in again {
                        self.send(&ToStorage::Request { request, body });
                    }
                    self.sender.publish();
                }
                FromStorage::Bootstrapped {
                    epoch,
                    replicas,
                    records,
                    ..
                } => self.bootstrapped = Some((epoch, Bootstrapped { replicas, records })),
                FromStorage::Answer { request, body } => {
                    if let Some(asked) = self.open.remove(&request) {
                        self.answers.push((request, asked, body));
                    }
                }
            }
        }
        if !some && wait {
            let head = self.sender.head().unwrap();
            // Rung for messages and for room; the limit is for a process that has ended.
            if self.receiver.arm().unwrap() && self.sender.arm_progress(head).unwrap() {
                self.bell.wait(Some(Duration::from_millis(10)));
            }
        }
    }

    fn check_alive(&mut self) {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait().unwrap()
        {
            panic!("storaged ended by itself: {status}, {}", self.words());
        }
    }

    /// Sends without publishing; `false`: there is no room now.
    pub fn try_send(&mut self, message: &ToStorage) -> bool {
        self.sender.try_send(message).unwrap().is_some()
    }

    /// Sends without publishing, when there is room.
    pub fn send(&mut self, message: &ToStorage) {
        let begin = Instant::now();
        while !self.try_send(message) {
            self.sender.publish();
            self.check_alive();
            assert!(begin.elapsed() < STALL, "no room");
            self.pump(true);
        }
    }

    pub fn publish(&mut self) {
        self.sender.publish();
    }

    /// Bytes in the ring that are not acknowledged.
    pub fn unacknowledged(&mut self) -> u64 {
        self.sender.used().unwrap()
    }

    /// Asks; the answer comes into `answers`. `false`: there is no room now.
    pub fn try_ask(&mut self, body: StorageRequest) -> bool {
        let request = self.next_request;
        let message = ToStorage::Request { request, body };
        let sent = self.try_send(&message);
        if let (true, ToStorage::Request { body, .. }) = (sent, message) {
            self.open.insert(request, body);
            self.next_request += 1;
        }
        sent
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, body: StorageRequest) -> StorageAnswer {
        let request = self.next_request;
        let begin = Instant::now();
        while !self.try_ask(body.clone()) {
            self.publish();
            self.check_alive();
            assert!(begin.elapsed() < STALL, "no room");
            self.pump(true);
        }
        self.publish();
        loop {
            if let Some(at) = self.answers.iter().position(|(n, ..)| *n == request) {
                return self.answers.remove(at).2;
            }
            self.check_alive();
            assert!(begin.elapsed() < STALL, "no answer");
            self.pump(true);
        }
    }

    /// Waits until everything that was sent is acknowledged.
    pub fn settle(&mut self) {
        let begin = Instant::now();
        self.publish();
        while self.unacknowledged() > 0 {
            self.check_alive();
            assert!(begin.elapsed() < STALL, "no acknowledgement");
            self.pump(true);
        }
    }

    /// Says Hello to a storaged that was started, and waits for its state.
    pub fn hello(&mut self) -> Bootstrapped {
        let begin = Instant::now();
        let wait = |host: &mut Host| {
            host.check_alive();
            assert!(begin.elapsed() < STALL, "storaged does not come up");
            host.pump(true);
        };
        while !self.up {
            wait(self);
        }
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        self.send(&ToStorage::Hello { epoch, number: 0 });
        self.publish();
        loop {
            match self.bootstrapped.take() {
                Some((of, state)) if of == epoch => return state,
                _ => wait(self),
            }
        }
    }

    /// Paths of the segments, ascending.
    pub fn segments(&self) -> Vec<PathBuf> {
        let dir = self.dir.path().join("log/shard-0");
        let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                name.starts_with("segment-")
            })
            .collect();
        paths.sort();
        paths
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone_already = child.kill();
            let _reaped_already = child.wait();
        }
    }
}
