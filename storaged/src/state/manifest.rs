//! Which tree belongs to which replica: one small file, replaced as a whole.
//!
//! Format: magic `MAREEMAN`, version u32, length u32, CRC-32C u32 (all little-endian), then the postcard of [`Manifest`].

use super::StoreError;
use crate::fault;
use crate::io::sync_dir;
use mareedb_ipc::wire::storage::KeyRange;
use mareedb_ipc::wire::{GroupId, ReplicaId, decode, encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;

const MAGIC: &[u8; 8] = b"MAREEMAN";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 20;

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) replicas: Vec<Listed>,
    /// Number of the next tree; numbers are never reused.
    pub(super) next_tree: u64,
}

/// A replica and its tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) group: GroupId,
    pub(super) replica: ReplicaId,
    pub(super) range: KeyRange,
    pub(super) tree: u64,
}

impl Manifest {
    /// Reads it. In a new directory it writes an empty one, so that there is one before there is a tree.
    ///
    /// # Errors
    /// Damage; a missing manifest beside trees is that, too: they would pass for leftovers (SM-2).
    pub(super) fn load(dir: &Path) -> Result<Manifest, StoreError> {
        let path = dir.join("manifest");
        let damaged = |what: &str| StoreError::Damaged(format!("{} {what}", path.display()));
        match std::fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes)
                .ok_or_else(|| damaged(&format!("is no manifest of version {VERSION}"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                for entry in std::fs::read_dir(dir)? {
                    if entry?.file_name().to_string_lossy().starts_with("tree-") {
                        return Err(damaged("is missing, and there are trees"));
                    }
                }
                let empty = Manifest::default();
                empty.store(dir)?;
                Ok(empty)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Manifest> {
        let (head, body) = bytes.split_at_checked(HEADER_BYTES)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let valid = &head[..8] == MAGIC
            && word(8) == VERSION
            && word(12) as usize == body.len()
            && word(16) == crc32c::crc32c(body);
        let manifest: Manifest = valid.then(|| decode(body).ok())??;
        // One replica a group, a tree each, and no number that will be given out again.
        let groups: BTreeSet<_> = manifest
            .replicas
            .iter()
            .map(|listed| listed.group)
            .collect();
        let trees: BTreeSet<_> = manifest.replicas.iter().map(|listed| listed.tree).collect();
        let whole = groups.len() == manifest.replicas.len()
            && trees.len() == manifest.replicas.len()
            && trees.last().is_none_or(|last| *last < manifest.next_tree);
        whole.then_some(manifest)
    }

    /// The number of a new tree.
    ///
    /// # Errors
    /// None is left.
    pub(super) fn take_number(&mut self) -> Result<u64, StoreError> {
        let number = self.next_tree;
        let next = number.checked_add(1);
        self.next_tree =
            next.ok_or_else(|| StoreError::Damaged("no number is left for a tree".into()))?;
        Ok(number)
    }

    /// Replaces it durably.
    pub(super) fn store(&self, dir: &Path) -> Result<(), StoreError> {
        let body = encode(self);
        let len = u32::try_from(body.len())
            .map_err(|_| StoreError::Damaged("manifest too large".into()))?;
        let new = dir.join("manifest.new");
        let mut file = File::create(&new)?;
        file.write_all(MAGIC)?;
        for word in [VERSION, len, crc32c::crc32c(&body)] {
            file.write_all(&word.to_le_bytes())?;
        }
        file.write_all(&body)?;
        file.sync_all()?;
        std::fs::rename(&new, dir.join("manifest"))?;
        // The new one is read from here on, and may not be after a crash.
        sync_dir(dir).map_err(|error| {
            fault::note(&error);
            StoreError::Unsettled(format!("{}: {error}", dir.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_comes_back_and_every_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = Manifest {
            replicas: vec![Listed {
                group: GroupId(1),
                replica: ReplicaId(9),
                range: KeyRange::whole(),
                tree: 3,
            }],
            next_tree: 4,
        };
        assert_eq!(Manifest::load(dir.path()).unwrap(), Manifest::default());
        assert!(dir.path().join("manifest").is_file());
        manifest.store(dir.path()).unwrap();
        assert_eq!(Manifest::load(dir.path()).unwrap(), manifest);
        let bytes = std::fs::read(dir.path().join("manifest")).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Manifest::parse(&bad), None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn hostile_files_are_none(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Manifest::parse(&bytes), None);
        }
    }
}
