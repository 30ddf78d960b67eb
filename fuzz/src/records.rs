//! Identity and acceptance on disk, and the state machine's manifest: any bytes are what was written or an error, and a
//! node that starts with them bears what others say to it.

use super::{formation, next, stream};
use bytes::Bytes;
use mareedb_consensusd::formation::{ACCEPTED, IDENTITY, Identity, Proposal};
use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::wire::storage::{KeyRange, NodeRecord};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, GroupId, ReplicaId, encode};
use mareedb_storaged::state::{Store, StoreOptions};
use serde::{Deserialize, Serialize};

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

fn open(dir: &std::path::Path) -> Option<Store> {
    Store::open(StoreOptions {
        dir: dir.to_owned(),
        cache_bytes: 1 << 20,
        unflushed_bytes_max: 1 << 20,
        first_rules: Rules::default(),
    })
    .ok()
}

fn opened(manifest: &[u8], tree: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    if tree {
        open(dir.path())
            .expect("a store")
            .create_replica(FIRST_DATA_GROUP, ReplicaId(1), KeyRange::whole())
            .expect("a replica");
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
    seeds
}
