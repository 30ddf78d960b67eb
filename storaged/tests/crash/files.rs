//! A file system that keeps what is durable apart from what is not yet, and makes the images that a crash may leave.
//!
//! What it promises is what POSIX does: the content of a file is durable when the file was synced, a name when its directory
//! was. Of everything else any part may be there, in whatever order: of each file any sectors of the writes since its last
//! sync, with its size anywhere between, and of each directory any of the names that were made, moved and removed since.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const SECTOR: usize = 512;

/// Number of a file or directory, never used again.
pub type Id = u64;
/// The directory that is watched.
pub const ROOT: Id = 0;

/// A change that was asked for.
#[derive(Clone, Debug)]
pub enum Op {
    /// A directory.
    MakeDir(Id, String, Id),
    /// An empty file.
    Create(Id, String, Id),
    /// Bytes at an offset.
    Write(Id, u64, Vec<u8>),
    /// A size.
    Truncate(Id, u64),
    /// Another name in the same directory.
    Rename(Id, String, String),
    /// A name less.
    Remove(Id, String),
    /// A file or directory is synced.
    Sync(Id),
}

impl Op {
    /// A few words for a list of steps.
    pub fn brief(&self) -> String {
        match self {
            Op::Write(id, at, bytes) => format!("write {id} at {at}, {} bytes", bytes.len()),
            other => format!("{other:?}"),
        }
    }
}

#[derive(Clone, Debug)]
enum Node {
    File {
        durable: Vec<u8>,
        pending: Vec<Op>,
    },
    Dir {
        durable: BTreeMap<String, Id>,
        pending: Vec<Op>,
    },
}

/// Pseudo-random numbers from a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that follow from a seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `bound`.
    pub fn roll(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % bound.max(1)
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Files {
    nodes: BTreeMap<Id, Node>,
}

fn write(content: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).expect("files are small here");
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

fn change_file(content: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write(_, at, bytes) => write(content, *at, bytes),
        Op::Truncate(_, len) => content.resize(usize::try_from(*len).expect("files are small"), 0),
        other => panic!("{other:?} is no change of a file"),
    }
}

/// The names of a directory after some changes. A moved file is known by its number, whether its old name came to be or not.
fn change_dir(names: &mut BTreeMap<String, Id>, op: &Op, moved: Id) {
    match op {
        Op::MakeDir(_, name, id) | Op::Create(_, name, id) => {
            names.insert(name.clone(), *id);
        }
        Op::Remove(_, name) => {
            names.remove(name);
        }
        Op::Rename(_, from, to) => {
            names.remove(from);
            names.insert(to.clone(), moved);
        }
        other => panic!("{other:?} is no change of a directory"),
    }
}

impl Files {
    /// An empty directory.
    pub fn new() -> Files {
        let root = Node::Dir {
            durable: BTreeMap::new(),
            pending: Vec::new(),
        };
        Files {
            nodes: BTreeMap::from([(ROOT, root)]),
        }
    }

    /// The highest number that was used.
    pub fn last_id(&self) -> Id {
        *self.nodes.keys().next_back().expect("the root is there")
    }

    /// Does what was asked for.
    pub fn take(&mut self, op: &Op) {
        let (of, made) = match op {
            Op::MakeDir(dir, _, id) => {
                let node = Node::Dir {
                    durable: BTreeMap::new(),
                    pending: Vec::new(),
                };
                (*dir, Some((*id, node)))
            }
            Op::Create(dir, _, id) => {
                let node = Node::File {
                    durable: Vec::new(),
                    pending: Vec::new(),
                };
                (*dir, Some((*id, node)))
            }
            Op::Write(id, ..) | Op::Truncate(id, _) | Op::Rename(id, ..) | Op::Remove(id, _) => {
                (*id, None)
            }
            Op::Sync(id) => return self.sync(*id),
        };
        self.nodes.extend(made);
        match self.nodes.get_mut(&of).expect("it was made before") {
            Node::File { pending, .. } | Node::Dir { pending, .. } => pending.push(op.clone()),
        }
    }

    fn sync(&mut self, id: Id) {
        let (content, names) = (self.content(id), self.names(id));
        match self.nodes.get_mut(&id).expect("it was made before") {
            Node::File { durable, pending } => {
                (*durable, *pending) = (content, Vec::new());
            }
            Node::Dir { durable, pending } => {
                (*durable, *pending) = (names, Vec::new());
            }
        }
    }

    /// What a file holds, durable or not.
    pub fn content(&self, id: Id) -> Vec<u8> {
        let Some(Node::File { durable, pending }) = self.nodes.get(&id) else {
            return Vec::new();
        };
        let mut content = durable.clone();
        pending.iter().for_each(|op| change_file(&mut content, op));
        content
    }

    /// What is in a directory, durable or not.
    pub fn names(&self, id: Id) -> BTreeMap<String, Id> {
        let Some(Node::Dir { durable, pending }) = self.nodes.get(&id) else {
            return BTreeMap::new();
        };
        self.named(durable, pending, |_| true)
    }

    fn named(
        &self,
        durable: &BTreeMap<String, Id>,
        pending: &[Op],
        mut lands: impl FnMut(usize) -> bool,
    ) -> BTreeMap<String, Id> {
        // What each name stood for when it was moved does not depend on what lands.
        let mut live = durable.clone();
        let mut names = durable.clone();
        for (at, op) in pending.iter().enumerate() {
            let moved = match op {
                Op::Rename(_, from, _) => live[from],
                _ => ROOT,
            };
            change_dir(&mut live, op, moved);
            if lands(at) {
                change_dir(&mut names, op, moved);
            }
        }
        names
    }

    /// Whether it is a directory.
    pub fn is_dir(&self, id: Id) -> bool {
        matches!(self.nodes.get(&id), Some(Node::Dir { .. }))
    }

    /// What the machine has when it comes up again: everything that is durable, and any part of what is not.
    pub fn crash(&self, dice: &mut Dice) -> Files {
        let mut image = Files {
            nodes: BTreeMap::new(),
        };
        for (id, node) in &self.nodes {
            let node = match node {
                Node::File { durable, pending } => Node::File {
                    durable: torn(durable, pending, dice),
                    pending: Vec::new(),
                },
                Node::Dir { durable, pending } => {
                    let mode = dice.roll(4);
                    let upto = dice.roll(pending.len() as u64 + 1);
                    let landed: Vec<bool> = (0..pending.len() as u64)
                        .map(|at| match mode {
                            0 => false,
                            1 => true,
                            2 => at < upto,
                            _ => dice.roll(2) == 0,
                        })
                        .collect();
                    Node::Dir {
                        durable: self.named(durable, pending, |at| landed[at]),
                        pending: Vec::new(),
                    }
                }
            };
            image.nodes.insert(*id, node);
        }
        image
    }

    /// All files that can be reached, with their paths from the root.
    pub fn paths(&self) -> Vec<(String, Id)> {
        let mut out = Vec::new();
        let mut dirs = vec![(String::new(), ROOT)];
        while let Some((path, dir)) = dirs.pop() {
            for (name, id) in self.names(dir) {
                let path = format!("{path}{name}");
                if self.is_dir(id) {
                    dirs.push((format!("{path}/"), id));
                } else {
                    out.push((path, id));
                }
            }
        }
        out.sort();
        out
    }

    /// Makes real files in an empty directory.
    pub fn make(&self, dir: &Path) {
        self.make_dir(ROOT, dir);
    }

    fn make_dir(&self, id: Id, dir: &Path) {
        for (name, id) in self.names(id) {
            let path = dir.join(name);
            if self.is_dir(id) {
                fs::create_dir(&path).expect("a new directory");
                self.make_dir(id, &path);
            } else {
                fs::write(&path, self.content(id)).expect("a new file");
            }
        }
    }

    /// Real files are what is here: no change has gone unseen.
    pub fn check(&self, dir: &Path) {
        self.check_dir(ROOT, dir);
    }

    fn check_dir(&self, id: Id, dir: &Path) {
        let names = self.names(id);
        let real: Vec<String> = fs::read_dir(dir)
            .expect("a directory")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("a plain name")
            })
            .collect();
        assert_eq!(
            real.len(),
            names.len(),
            "{}: {real:?}, recorded {names:?}",
            dir.display()
        );
        for (name, id) in names {
            let path = dir.join(&name);
            if self.is_dir(id) {
                self.check_dir(id, &path);
            } else {
                let content =
                    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert!(
                    content == self.content(id),
                    "{} is not what was recorded",
                    path.display()
                );
            }
        }
    }
}

/// A file of which any sectors were written.
fn torn(durable: &[u8], pending: &[Op], dice: &mut Dice) -> Vec<u8> {
    let mode = dice.roll(4);
    let upto = dice.roll(pending.len() as u64 + 1);
    let mut content = durable.to_vec();
    let mut longest = durable.len();
    for (number, op) in pending.iter().enumerate() {
        let whole = match mode {
            0 => Some(false),
            1 => Some(true),
            2 => Some((number as u64) < upto),
            _ => None,
        };
        let Op::Write(_, at, bytes) = op else {
            if whole.unwrap_or_else(|| dice.roll(2) == 0) {
                change_file(&mut content, op);
            }
            continue;
        };
        longest = longest.max(usize::try_from(*at).expect("files are small") + bytes.len());
        // Sectors are those of the file, wherever the write begins.
        let mut from = 0;
        while from < bytes.len() {
            let offset = usize::try_from(*at).expect("files are small") + from;
            let len = (SECTOR - offset % SECTOR).min(bytes.len() - from);
            if whole.unwrap_or_else(|| dice.roll(2) == 0) {
                write(&mut content, offset as u64, &bytes[from..from + len]);
            }
            from += len;
        }
    }
    if mode == 3 && content.len() < longest && dice.roll(2) == 0 {
        // The size came before the bytes.
        content.resize(longest, 0);
    }
    content
}
