//! A full disk: what there is no room for waits, and is tried again until there is.

use crate::fault;
use crate::state::StoreError;
use std::fmt::Arguments;

/// Whether there was no room for a piece of work when it was tried last. The journal says it when that changes, not as often as it is
/// tried: it may be on the same disk.
#[derive(Default)]
pub(super) struct FullDisk(bool);

impl FullDisk {
    /// To be told after each try; `what` was tried, and what came in its way.
    pub(super) fn note(&mut self, full: bool, what: Arguments<'_>) {
        if std::mem::replace(&mut self.0, full) == full {
            return;
        }
        if full {
            tracing::error!("{what}; tried again until there is room");
        } else {
            tracing::info!("{what}: the disk has room again");
        }
    }
}

/// Whether that is why the store did not do something.
pub(super) fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Io(error) if fault::is_full(error))
}
