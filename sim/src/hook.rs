//! Panics are what the simulation looks for: they are kept with their place, and printed with the seed.

use std::any::Any;
use std::cell::RefCell;
use std::panic::PanicHookInfo;

thread_local! {
    /// `None`: this thread simulates nothing, and panics as ever.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the panics of threads that [`watch`], instead of printing them.
pub fn install() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !keep(info) {
            print(info);
        }
    }));
}

fn keep(info: &PanicHookInfo<'_>) -> bool {
    LAST.try_with(|last| {
        let mut last = last.borrow_mut();
        let Some(kept) = last.as_mut() else {
            return false;
        };
        let place = info.location().map_or_else(String::new, |place| {
            format!("{}:{}", place.file(), place.line())
        });
        *kept = place;
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            let trace = std::backtrace::Backtrace::force_capture();
            kept.push('\n');
            kept.push_str(&trace.to_string());
        }
        true
    })
    .unwrap_or(false)
}

/// From now on this thread's panics are kept.
pub fn watch() {
    LAST.set(Some(String::new()));
}

/// What a panic of this thread said, and where.
pub fn said(payload: &(dyn Any + Send)) -> String {
    let place = LAST.with_borrow(|last| last.clone().unwrap_or_default());
    format!("{} ({place})", crate::executor::text(payload))
}
