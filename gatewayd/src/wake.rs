//! The main loop's alarm clock.

use mareedb_ipc::Alarm;
use tokio::sync::Notify;

/// Wakes the main loop from tasks.
#[derive(Default)]
pub struct Wake(Notify);

impl Wake {
    /// Waits for a wake.
    pub async fn wait(&self) {
        self.0.notified().await;
    }
}

impl Alarm for Wake {
    fn wake(&self) {
        self.0.notify_one();
    }
}
