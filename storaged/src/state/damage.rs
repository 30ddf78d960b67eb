//! Says that a tree is damaged, and which of its files is: the engine checks each block that it reads, but not the list of its
//! files, and its errors name no file (DUR-2).

use super::StoreError;
use lsm_tree::{AbstractTree, AnyTree};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::OnceLock;

/// Number u64, XXH3-128 u128, kind of checksum u8, all little-endian.
const CURRENT_BYTES: usize = 25;
const XXH3: u8 = 0;

fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::Damaged(format!("{}: {what}", path.display()))
}

/// The list of files that `current` names is the one that was written. It says which tables there are and how to read them:
/// taken with a flipped bit, a tree would show another state and tell nobody.
///
/// # Errors
/// It is not, or the disk.
pub(super) fn check_list(dir: &Path) -> Result<(), StoreError> {
    let (number, sum) = named(dir)?;
    let list = dir.join(format!("v{number}"));
    match fs::read(&list) {
        Ok(bytes) if xxhash_rust::xxh3::xxh3_128(&bytes) == sum => Ok(()),
        Ok(_) => Err(damaged(&list, "is not what was written")),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(damaged(&list, "is missing, and 'current' names it"))
        }
        Err(error) => Err(error.into()),
    }
}

/// The number of the list that `current` names, and the list's checksum.
///
/// # Errors
/// It is no such file, or the disk.
pub(super) fn named(dir: &Path) -> Result<(u64, u128), StoreError> {
    let current = dir.join("current");
    let bytes = fs::read(&current)?;
    if bytes.len() != CURRENT_BYTES || bytes[CURRENT_BYTES - 1] != XXH3 {
        return Err(damaged(&current, "is not what was written"));
    }
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let sum = u128::from_le_bytes(bytes[8..24].try_into().expect("sixteen bytes"));
    Ok((number, sum))
}

/// What an error of the engine means: the disk failed, or it holds what was never written.
pub(super) fn told(error: lsm_tree::Error, of: &Path) -> StoreError {
    match error {
        // Of these the first is a file that is gone; the others come of offsets and lengths that are none.
        lsm_tree::Error::Io(error)
            if !matches!(
                error.kind(),
                ErrorKind::NotFound
                    | ErrorKind::UnexpectedEof
                    | ErrorKind::InvalidInput
                    | ErrorKind::InvalidData
            ) =>
        {
            StoreError::from(error)
        }
        damage => damaged(of, &damage.to_string()),
    }
}

/// The same of an open tree, whose tables are looked through for the one that is damaged. That reads all of them, so that it is done once
/// a tree: `first` is the damage that was found.
pub(super) fn told_of(
    error: lsm_tree::Error,
    tree: &AnyTree,
    dir: &Path,
    first: &OnceLock<String>,
) -> StoreError {
    match told(error, dir) {
        StoreError::Damaged(damage) => {
            StoreError::Damaged(first.get_or_init(|| blame(damage, tree)).clone())
        }
        other => other,
    }
}

fn blame(damage: String, tree: &AnyTree) -> String {
    let version = tree.current_version();
    for table in version.iter_tables() {
        // One that cannot be read, or was merged away since, is not to blame for what was read before.
        let Ok(bytes) = fs::read(&*table.path) else {
            continue;
        };
        if xxhash_rust::xxh3::xxh3_128(&bytes) != table.checksum().into_u128() {
            let path = table.path.display();
            return format!("{path}: is not what was written ({damage})");
        }
    }
    damage
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_disk_that_fails_is_not_damage_and_damage_is_no_failure_of_the_disk() {
        let io = |kind: ErrorKind| lsm_tree::Error::Io(io::Error::from(kind));
        let dir = Path::new("tree-7");
        for kind in [
            ErrorKind::StorageFull,
            ErrorKind::QuotaExceeded,
            ErrorKind::Other,
        ] {
            assert!(matches!(told(io(kind), dir), StoreError::Io(error) if error.kind() == kind));
        }
        for damage in [io(ErrorKind::UnexpectedEof), lsm_tree::Error::Unrecoverable] {
            let told = told(damage, dir);
            assert!(
                matches!(&told, StoreError::Damaged(why) if why.starts_with("tree-7")),
                "{told}"
            );
        }
    }
}
