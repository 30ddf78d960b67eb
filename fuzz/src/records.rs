//! Identity and acceptance on disk, the state machine's manifest, the file that names a tree's list of files, and a log's key: any
//! bytes are what was written or an error, and a node that starts with them bears what others say to it.

use super::{formation, next, stream};
use bytes::Bytes;
use mareedb_consensusd::formation::{ACCEPTED, IDENTITY, Identity, Proposal};
use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::wire::storage::{KeyRange, NodeRecord};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, GroupId, ReplicaId, encode};
use mareedb_storaged::io::{Disk as _, StdDisk};
use mareedb_storaged::state::{Store, StoreError, StoreOptions};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// What lies on the disk.
#[derive(Serialize, Deserialize)]
enum Disk {
    /// Records that can be read, and the steps that follow.
    Formation {
        identity: Option<Identity>,
        accepted: Option<Proposal>,
    },
    /// Records of any bytes.
    Bytes {
        identity: Option<Bytes>,
        accepted: Option<Bytes>,
    },
    /// A manifest whose checksum is right, beside a replica's tree.
    Manifest {
        version: u8,
        replicas: Vec<(GroupId, ReplicaId, KeyRange, u64)>,
        next_tree: u64,
        more: Vec<u8>,
    },
    /// A manifest of any bytes.
    Raw(Vec<u8>),
    /// What names a tree's list of files, with flipped bits (place, bits), and without its last bytes or with more.
    Current {
        flips: Vec<(u8, u8)>,
        without: u8,
        more: Vec<u8>,
    },
    /// What names it, of any bytes.
    RawCurrent(Vec<u8>),
    /// A log's key whose checksum is right, with more behind it.
    Key { key: u64, more: Vec<u8> },
    /// A key of any bytes.
    RawKey(Vec<u8>),
}

fn record(name: &str, value: Option<Bytes>) -> Option<NodeRecord> {
    Some(NodeRecord {
        name: name.into(),
        value: value?,
    })
}

fn started(identity: Option<Bytes>, accepted: Option<Bytes>, steps: &[u8]) {
    let records: Vec<_> = [record(IDENTITY, identity), record(ACCEPTED, accepted)]
        .into_iter()
        .flatten()
        .collect();
    if let Ok(mut formation) = formation::begin(&records) {
        formation::drive(&mut formation, steps);
    }
}

fn try_open(dir: &Path) -> Result<Store, StoreError> {
    Store::open(StoreOptions {
        dir: dir.to_owned(),
        cache_bytes: 1 << 20,
        unflushed_bytes_max: 1 << 20,
        first_rules: Rules::default(),
    })
}

fn open(dir: &Path) -> Option<Store> {
    try_open(dir).ok()
}

/// Makes a tree, the first one.
fn make_tree(dir: &Path) {
    open(dir)
        .expect("a store")
        .create_replica(FIRST_DATA_GROUP, ReplicaId(1), KeyRange::whole())
        .expect("a replica");
}

fn opened(manifest: &[u8], tree: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    if tree {
        make_tree(dir.path());
    }
    std::fs::write(dir.path().join("manifest"), manifest).expect("a file");
    if let Some(store) = open(dir.path()) {
        let group = GroupId(2);
        let made = store.create_replica(group, ReplicaId(1), KeyRange::whole());
        let _ = (store.replicas(), store.flush(FIRST_DATA_GROUP));
        drop(store);
        let again = open(dir.path()).expect("what was opened can be opened");
        assert!(made.is_err() || again.applied(group).is_some());
    }
}

/// A tree whose list is named by what `change` makes of the file that names it.
fn named(change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    make_tree(dir.path());
    let path = dir.path().join("tree-0").join("current");
    let written = std::fs::read(&path).expect("a file");
    let file = change(written.clone());
    std::fs::write(&path, &file).expect("a file");
    match try_open(dir.path()) {
        Ok(_) => assert_eq!(file, written),
        Err(StoreError::Damaged(_)) => assert_ne!(file, written),
        Err(error) => panic!("no damage: {error}"),
    }
}

fn key_file(key: u64) -> Vec<u8> {
    let mut file = b"MAREEKEY".to_vec();
    file.extend_from_slice(&key.to_le_bytes());
    file.extend_from_slice(&crc32c::crc32c(&file).to_le_bytes());
    file
}

fn keyed(file: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut disk = StdDisk::open(dir.path()).expect("a directory");
    std::fs::write(dir.path().join("key"), file).expect("a file");
    let whole = |key: &[u8]| key_file(u64::from_le_bytes(key.try_into().expect("eight bytes")));
    let written = file.get(8..16).is_some_and(|key| whole(key) == file);
    match disk.key() {
        Ok(key) => assert_eq!(file, key_file(key)),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            assert!(!written, "{error}");
        }
    }
}

pub fn run(mut bytes: &[u8]) {
    match next::<Disk>(&mut bytes) {
        Some(Disk::Formation { identity, accepted }) => started(
            identity.map(|mut identity| {
                identity.name = "node1".into();
                encode(&identity).into()
            }),
            accepted.map(|accepted| encode(&accepted).into()),
            bytes,
        ),
        Some(Disk::Bytes { identity, accepted }) => started(identity, accepted, bytes),
        Some(Disk::Manifest {
            version,
            replicas,
            next_tree,
            more,
        }) => {
            let mut body = encode(&(replicas, next_tree));
            body.extend_from_slice(&more);
            let mut file = b"MAREEMAN".to_vec();
            let len = u32::try_from(body.len()).expect("inputs are small");
            for word in [u32::from(version), len, crc32c::crc32c(&body)] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            file.extend_from_slice(&body);
            opened(&file, true);
        }
        Some(Disk::Raw(manifest)) => opened(&manifest, false),
        Some(Disk::Current {
            flips,
            without,
            more,
        }) => named(|mut file| {
            for (at, bits) in flips {
                let at = usize::from(at) % file.len();
                file[at] ^= bits;
            }
            file.truncate(file.len().saturating_sub(without.into()));
            file.extend_from_slice(&more);
            file
        }),
        Some(Disk::RawCurrent(file)) => named(|_| file),
        Some(Disk::Key { key, more }) => keyed(&[key_file(key), more].concat()),
        Some(Disk::RawKey(file)) => keyed(&file),
        None => {}
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let identity = Identity {
        incarnation: formation::ME,
        name: "node1".into(),
        formed: None,
    };
    let formed = Identity {
        formed: Some(formation::proposal()),
        ..identity.clone()
    };
    let accepted = Some(formation::proposal());
    let disk = |identity, accepted| Disk::Formation { identity, accepted };
    let disks = [
        disk(None, None),
        disk(Some(identity.clone()), None),
        disk(Some(identity.clone()), accepted.clone()),
        disk(Some(formed.clone()), accepted.clone()),
    ];
    let mut seeds = Vec::new();
    for disk in disks {
        for steps in [formation::steps(), formation::told()] {
            seeds.push([encode(&disk), stream(&steps)].concat());
        }
    }
    // A cluster of nobody.
    let nobody = || {
        let mut nobody = formation::proposal();
        nobody.members.clear();
        Some(nobody)
    };
    let founded = Identity {
        formed: nobody(),
        ..identity.clone()
    };
    for disk in [disk(Some(identity), nobody()), disk(Some(founded), None)] {
        seeds.push([encode(&disk), stream(&formation::steps())].concat());
    }
    seeds.push(encode(&Disk::Manifest {
        version: 1,
        replicas: Vec::new(),
        next_tree: u64::MAX,
        more: Vec::new(),
    }));
    seeds.push(encode(&Disk::Bytes {
        identity: Some(encode(&formed).into()),
        accepted: Some(encode(&formation::proposal()).into()),
    }));
    let listed = |number: u32| {
        let group = GroupId(number);
        (
            group,
            ReplicaId(1),
            KeyRange::whole(),
            u64::from(number) - 1,
        )
    };
    for replicas in [vec![], vec![listed(1)], vec![listed(1), listed(3)]] {
        seeds.push(encode(&Disk::Manifest {
            version: 1,
            next_tree: replicas.len() as u64,
            replicas,
            more: Vec::new(),
        }));
    }
    seeds.push(encode(&Disk::Raw(b"MAREEMAN\x01\0\0\0".to_vec())));
    // Its number, the checksum of the list, the kind of checksum: 8, 16 and 1 bytes.
    for (flips, without, more) in [
        (vec![], 0, vec![]),
        (vec![(0, 1)], 0, vec![]),
        (vec![(8, 1)], 0, vec![]),
        (vec![(24, 1)], 0, vec![]),
        (vec![], 1, vec![]),
        (vec![], 0, vec![0]),
    ] {
        seeds.push(encode(&Disk::Current {
            flips,
            without,
            more,
        }));
    }
    seeds.push(encode(&Disk::RawCurrent(vec![0; 25])));
    for more in [vec![], vec![0]] {
        seeds.push(encode(&Disk::Key { key: 7, more }));
    }
    seeds.push(encode(&Disk::RawKey(b"MAREEKEY".to_vec())));
    seeds.push(encode(&Disk::RawKey(key_file(7)[..16].to_vec())));
    seeds
}
