//! Records what a thread does to the files of one directory, and lets calls fail.

use crate::files::{Files, Id, Op, ROOT};
use libc::{AT_FDCWD, O_CREAT, O_DSYNC, O_SYNC, O_TRUNC, c_int};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A call that changes a directory.
#[derive(Debug)]
pub enum Call {
    /// rename(2).
    Rename(PathBuf, PathBuf),
    /// unlinkat(2).
    Remove(c_int, PathBuf),
    /// mkdir(2).
    MakeDir(PathBuf),
}

/// What was durable at first, and what was done since.
#[derive(Clone, Debug)]
pub struct History {
    base: Files,
    /// In order.
    pub ops: Vec<Op>,
}

impl History {
    /// Nothing.
    pub fn new() -> History {
        History::over(Files::new())
    }

    /// Over what a crash has left.
    pub fn over(base: Files) -> History {
        History {
            base,
            ops: Vec::new(),
        }
    }

    /// After so many changes.
    pub fn at(&self, ops: usize) -> Files {
        let mut files = self.base.clone();
        self.ops[..ops].iter().for_each(|op| files.take(op));
        files
    }

    /// After all changes.
    pub fn now(&self) -> Files {
        self.at(self.ops.len())
    }
}

/// A call that will fail.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    /// Changing calls that go well before.
    pub after: u64,
    /// Calls that fail then, one after the other.
    pub calls: u64,
    /// How.
    pub errno: c_int,
}

/// A sync that does not happen, although its caller is told so: a fault that tests plant.
pub type Skips = fn(&str) -> bool;

struct Opened {
    id: Id,
    durable: bool,
    /// Of the file, so that a descriptor that was closed unseen is noticed.
    inode: (u64, u64),
}

/// See the module.
pub struct Recorder {
    root: PathBuf,
    /// What was done.
    pub history: History,
    live: Files,
    next: Id,
    fds: BTreeMap<c_int, Opened>,
    /// Real numbers of files that tempfile will rename unseen.
    temporary: BTreeMap<(Id, String), (u64, u64)>,
    /// What is going to fail.
    pub trouble: Option<Trouble>,
    /// Calls that failed.
    pub failed: u64,
    /// A full disk has taken a part of a write.
    half: bool,
    /// What is planted.
    pub skips: Option<Skips>,
}

fn inode_of(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn inode_of_fd(fd: c_int) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(format!("/proc/self/fd/{fd}")).ok()?;
    Some((meta.dev(), meta.ino()))
}

impl Recorder {
    /// Puts everything of a history into a directory, and goes on from there.
    pub fn new(root: &Path, history: History) -> Recorder {
        let live = history.now();
        live.make(root);
        let next = live.last_id() + 1;
        Recorder {
            root: root.to_owned(),
            history,
            live,
            next,
            fds: BTreeMap::new(),
            temporary: BTreeMap::new(),
            trouble: None,
            failed: 0,
            half: false,
            skips: None,
        }
    }

    /// Ends: nothing has gone unseen.
    pub fn done(mut self) -> History {
        self.look();
        self.live.check(&self.root);
        self.history
    }

    fn take(&mut self, op: Op) {
        self.live.take(&op);
        self.history.ops.push(op);
    }

    /// The directory and the name of a path that is watched; the root itself has no name.
    fn place(&self, at: c_int, path: &Path) -> Option<(Id, Option<String>)> {
        let mut dir = ROOT;
        let below = if path.is_absolute() || at == AT_FDCWD {
            path.strip_prefix(&self.root).ok()?
        } else {
            dir = self.fds.get(&at)?.id;
            path
        };
        let mut parts: Vec<String> = below
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect();
        let Some(name) = parts.pop() else {
            return Some((ROOT, None));
        };
        for part in parts {
            dir = *self.live.names(dir).get(&part)?;
        }
        Some((dir, Some(name)))
    }

    fn find(&self, at: c_int, path: &Path) -> Option<Id> {
        let (dir, name) = self.place(at, path)?;
        match name {
            None => Some(ROOT),
            Some(name) => self.live.names(dir).get(&name).copied(),
        }
    }

    fn path_of(&self, wanted: Id) -> Option<PathBuf> {
        let mut dirs = vec![(self.root.clone(), ROOT)];
        while let Some((path, dir)) = dirs.pop() {
            if dir == wanted {
                return Some(path);
            }
            for (name, id) in self.live.names(dir) {
                if self.live.is_dir(id) || id == wanted {
                    dirs.push((path.join(name), id));
                }
            }
        }
        None
    }

    /// Finds the files that tempfile has renamed.
    fn look(&mut self) {
        let gone: Vec<(Id, String, (u64, u64))> = self
            .temporary
            .iter()
            .filter(|((dir, name), _)| {
                let path = self.path_of(*dir).map(|path| path.join(name));
                path.is_some_and(|path| inode_of(&path).is_none())
            })
            .map(|((dir, name), inode)| (*dir, name.clone(), *inode))
            .collect();
        for (dir, name, inode) in gone {
            self.temporary.remove(&(dir, name.clone()));
            let Some(path) = self.path_of(dir) else {
                continue;
            };
            let to = std::fs::read_dir(path)
                .expect("a directory")
                .flatten()
                .find(|entry| inode_of(&entry.path()) == Some(inode))
                .map(|entry| entry.file_name().to_string_lossy().into_owned());
            if let Some(to) = to {
                self.take(Op::Rename(dir, name, to));
            }
        }
    }

    /// Whether the next changing call fails.
    fn trouble(&mut self) -> Result<(), c_int> {
        let Some(trouble) = &mut self.trouble else {
            return Ok(());
        };
        if trouble.after > 0 {
            trouble.after -= 1;
            return Ok(());
        }
        let errno = trouble.errno;
        trouble.calls -= 1;
        if trouble.calls == 0 {
            self.trouble = None;
        }
        self.failed += 1;
        Err(errno)
    }

    pub(crate) fn opens(&mut self, at: c_int, path: &Path, flags: c_int) -> Result<(), c_int> {
        self.look();
        if flags & O_CREAT != 0 && self.place(at, path).is_some() && self.find(at, path).is_none() {
            return self.trouble();
        }
        Ok(())
    }

    pub(crate) fn opened(&mut self, at: c_int, path: &Path, flags: c_int, fd: c_int) {
        self.fds.remove(&fd);
        let Some((dir, name)) = self.place(at, path) else {
            return;
        };
        let known = self.find(at, path);
        let id = match (known, name) {
            (Some(id), _) => {
                if flags & O_TRUNC != 0 {
                    self.take(Op::Truncate(id, 0));
                }
                id
            }
            (None, Some(name)) if flags & O_CREAT != 0 => {
                let id = self.next;
                self.next += 1;
                if name.starts_with(".tmp")
                    && let Some(inode) = inode_of_fd(fd)
                {
                    self.temporary.insert((dir, name.clone()), inode);
                }
                self.take(Op::Create(dir, name, id));
                id
            }
            _ => return,
        };
        if let Some(inode) = inode_of_fd(fd) {
            let durable = flags & (O_DSYNC | O_SYNC) != 0;
            self.fds.insert(fd, Opened { id, durable, inode });
        }
    }

    pub(crate) fn closed(&mut self, fd: c_int) {
        self.fds.remove(&fd);
    }

    pub(crate) fn knows(&mut self, fd: c_int) -> bool {
        let known = self.fds.get(&fd).map(|opened| opened.inode);
        if known.is_some() && known != inode_of_fd(fd) {
            self.fds.remove(&fd);
        }
        self.fds.contains_key(&fd)
    }

    /// How many bytes may be written: a disk that is full takes a part.
    pub(crate) fn writes(&mut self, fd: c_int, len: usize) -> Result<usize, c_int> {
        if !self.knows(fd) {
            return Ok(len);
        }
        self.look();
        match self.trouble() {
            Err(libc::ENOSPC) if len > 1 && !self.half => {
                // A part is written, and the call for the rest fails.
                self.half = true;
                let calls = self.trouble.map_or(0, |left| left.calls) + 1;
                self.trouble = Some(Trouble {
                    after: 0,
                    calls,
                    errno: libc::ENOSPC,
                });
                Ok(len / 2)
            }
            other => {
                self.half = false;
                other.map(|()| len)
            }
        }
    }

    pub(crate) fn wrote(&mut self, fd: c_int, at: u64, bytes: &[u8]) {
        if let Some(Opened { id, durable, .. }) = self.fds.get(&fd) {
            let (id, durable) = (*id, *durable);
            self.take(Op::Write(id, at, bytes.to_vec()));
            if durable {
                self.take(Op::Sync(id));
            }
        }
    }

    pub(crate) fn truncated(&mut self, fd: c_int, len: u64) {
        if self.knows(fd)
            && let Some(opened) = self.fds.get(&fd)
        {
            let id = opened.id;
            self.take(Op::Truncate(id, len));
        }
    }

    pub(crate) fn syncs(&mut self, fd: c_int) -> Result<(), c_int> {
        if !self.knows(fd) {
            return Ok(());
        }
        self.look();
        self.trouble()?;
        let id = self.fds[&fd].id;
        let skipped = self.skips.is_some_and(|skips| {
            let path = self.path_of(id).unwrap_or_default();
            let below = path.strip_prefix(&self.root).unwrap_or(&path);
            skips(&below.to_string_lossy())
        });
        if !skipped {
            self.take(Op::Sync(id));
        }
        Ok(())
    }

    pub(crate) fn changes(&mut self, call: &Call) -> Result<(), c_int> {
        self.look();
        let watched = match call {
            Call::Rename(from, _) => self.find(AT_FDCWD, from).is_some(),
            Call::Remove(..) => false,
            Call::MakeDir(path) => {
                self.place(AT_FDCWD, path).is_some() && self.find(AT_FDCWD, path).is_none()
            }
        };
        if watched { self.trouble() } else { Ok(()) }
    }

    pub(crate) fn changed(&mut self, call: &Call) {
        match call {
            Call::Rename(from, to) => {
                let (Some((dir, Some(from))), Some((into, Some(to)))) =
                    (self.place(AT_FDCWD, from), self.place(AT_FDCWD, to))
                else {
                    return;
                };
                assert_eq!(dir, into, "a rename from one directory to another");
                self.take(Op::Rename(dir, from, to));
            }
            Call::Remove(at, path) => {
                if let Some((dir, Some(name))) = self.place(*at, path) {
                    self.temporary.remove(&(dir, name.clone()));
                    self.take(Op::Remove(dir, name));
                }
            }
            Call::MakeDir(path) => {
                if let Some((dir, Some(name))) = self.place(AT_FDCWD, path) {
                    let id = self.next;
                    self.next += 1;
                    self.take(Op::MakeDir(dir, name, id));
                }
            }
        }
    }
}
