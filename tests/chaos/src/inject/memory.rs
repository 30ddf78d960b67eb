//! Too little memory for a daemon: a control group of its own that allows only so much more, in which the kernel makes it wait for
//! memory or kills it.

use super::Strike;
use mareedb_bench::cluster::DAEMONS;
use std::fs;
use std::path::{Path, PathBuf};

/// Version 1 of control groups, where each kind is mounted apart.
const ROOT: &str = "/sys/fs/cgroup/memory";

/// Whether this machine lets us make such groups.
pub(crate) fn possible() -> bool {
    let group = Path::new(ROOT).join(format!("mdb-try-{}", std::process::id()));
    fs::create_dir(&group).is_ok() && {
        let limited = fs::write(group.join("memory.limit_in_bytes"), "67108864").is_ok();
        let _ = fs::remove_dir(&group);
        limited
    }
}

/// Removes itself, and gives what is still inside back to the root.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, bytes: u64) -> Option<Group> {
        let path = Path::new(ROOT).join(name);
        fs::create_dir(&path).ok()?;
        let group = Group(path);
        fs::write(group.0.join("memory.limit_in_bytes"), bytes.to_string()).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let inside = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            // It may have ended.
            let _ = fs::write(Path::new(ROOT).join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

impl Strike<'_> {
    pub(super) async fn limit_memory(&mut self) -> Option<u64> {
        let daemon = *self.random.pick(&DAEMONS);
        let pid = self.bed.node(self.at).daemon_pid(daemon)?;
        let bytes = self.random.within((1 << 20, 24 << 20));
        let name = format!("mdb-{}-{pid}", std::process::id());
        let group = Group::new(&name, bytes)?;
        fs::write(group.0.join("cgroup.procs"), pid.to_string()).ok()?;
        self.last().await;
        Some(Self::bit(self.at))
    }
}
