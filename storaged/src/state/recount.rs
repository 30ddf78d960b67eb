//! Counts a replica's tree anew, for the simulation: the digest that replicas compare is kept up with each change, so that a key which
//! a merge, a restart or a snapshot lost would not show in it.

use super::records::{self, System, Version};
use super::{Store, StoreError, batch};
use mareedb_ipc::wire::GroupId;
use mareedb_ipc::wire::command::Rules;
use std::ops::Bound;

impl Store {
    /// Whether what is in the tree is what the state record says of it (DET-1, SM-5).
    ///
    /// # Errors
    /// It is not, or it cannot be read.
    pub fn recount(&self, group: GroupId) -> Result<(), StoreError> {
        let (pin, _) = self.replica(group)?.pin();
        let system = System::of(&pin, &Rules::default())?;
        let (mut digest, mut data_bytes) = (0_u128, 0);
        for pair in pin.range(Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = pair?;
            if !records::is_record(&key, &value) {
                return Err(StoreError::Damaged("a pair is no record".into()));
            }
            if batch::counts(&key) {
                digest = digest.wrapping_add(batch::hash(&key, &value));
            }
            if key[0] == b'd' {
                let version: Version = records::read(&value)?;
                data_bytes += (key.len() - 1 + version.value.map_or(0, |value| value.len())) as u64;
            }
        }
        if (digest, data_bytes) == (system.digest, system.data_bytes) {
            return Ok(());
        }
        Err(StoreError::Damaged(format!(
            "it holds {data_bytes} bytes of digest {digest:032x}, and {} of {:032x} are counted",
            system.data_bytes, system.digest
        )))
    }
}
