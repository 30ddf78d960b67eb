//! Faults of the shared memory between daemons: words that nobody wrote, and rings that are full.
//!
//! The rings are the supervisor's memfds, so `/proc` lets root write to them as a stray pointer of a daemon would. Only values are
//! written that a check can tell from good ones ([formats/ring.md](../../../../docs/formats/ring.md), RING-3): a `head` that looks right
//! *is* an acknowledgement, and no program could know better.

use super::Strike;
use mareedb_bench::http::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const MAGIC: &[u8; 8] = b"MAREERNG";
const AT_TAIL: u64 = 128;
const AT_HEAD: u64 = 256;
const HEADER_BYTES: u64 = 4096;

/// Values written while a consumer stands still: more than the half of a ring, from which on its producer holds back.
const BURST: usize = 60;
const BURST_BYTES: usize = 100 << 10;

/// The rings of a node, in the order of the supervisor's descriptors.
fn rings(supervisor: u32) -> Vec<File> {
    let Ok(listed) = std::fs::read_dir(format!("/proc/{supervisor}/fd")) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = listed.flatten().map(|entry| entry.path()).collect();
    paths.sort_by_key(|path| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        name.unwrap_or(u32::MAX)
    });
    paths
        .into_iter()
        .filter(|path| {
            std::fs::read_link(path)
                .is_ok_and(|target| target.to_string_lossy().contains("memfd:mareedb-ring"))
        })
        .filter_map(|path| File::options().read(true).write(true).open(path).ok())
        .filter(|ring| {
            let mut magic = [0; 8];
            ring.read_exact_at(&mut magic, 0).is_ok() && magic == *MAGIC
        })
        .collect()
}

fn word(ring: &File, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    ring.read_exact_at(&mut bytes, at).ok()?;
    Some(u64::from_le_bytes(bytes))
}

impl Strike<'_> {
    /// Spoils a word or a record of one ring.
    pub(super) async fn corrupt_ring(&mut self) -> Option<u64> {
        let supervisor = self.bed.node(self.at).pid()?;
        let rings = rings(supervisor);
        if rings.is_empty() {
            return None;
        }
        let ring = self.random.pick(&rings);
        let capacity = ring.metadata().ok()?.len().checked_sub(HEADER_BYTES)?;
        let (tail, head) = (word(ring, AT_TAIL)?, word(ring, AT_HEAD)?);
        let far = capacity * 4 + 8 * self.random.below(1 << 20);
        match self.random.below(5) {
            0 => ring.write_at(&(tail | 1).to_le_bytes(), AT_TAIL).ok()?,
            1 => ring.write_at(&(tail + far).to_le_bytes(), AT_TAIL).ok()?,
            2 => ring.write_at(&(head | 1).to_le_bytes(), AT_HEAD).ok()?,
            3 => ring.write_at(&(tail + far).to_le_bytes(), AT_HEAD).ok()?,
            _ => {
                // What is published and not taken yet; nothing, most of the time.
                let used = tail.saturating_sub(head).max(8);
                let at = head + self.random.below(used);
                let at = HEADER_BYTES + at % capacity;
                let mut byte = [0];
                ring.read_exact_at(&mut byte, at).ok()?;
                ring.write_at(&[byte[0] ^ 0x40], at).ok()?
            }
        };
        self.last().await;
        Some(Self::bit(self.at))
    }

    /// Stops storaged for less than the hang limit, while clients write more than its ring holds.
    pub(super) async fn fill_ring(&mut self) -> Option<u64> {
        let (addr, stopped) = {
            let node = self.bed.node(self.at);
            (
                node.rest(),
                node.signal_daemon("storaged", Signal::SIGSTOP)?,
            )
        };
        let writes: Vec<_> = (0..BURST)
            .map(|number| {
                let key = format!("burst%2F{number}");
                tokio::spawn(async move {
                    // Whether it is taken or refused is the fault's business, not its success.
                    let _ = Client::new(addr).put(&key, &vec![b'b'; BURST_BYTES]).await;
                })
            })
            .collect();
        self.last().await;
        // It may have been killed meanwhile.
        let _ = kill(Pid::from_raw(stopped.cast_signed()), Signal::SIGCONT);
        tokio::time::sleep(Duration::from_millis(50)).await;
        for write in writes {
            let _ = write.await;
        }
        Some(Self::bit(self.at))
    }
}
