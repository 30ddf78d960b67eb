//! The seam between this test and the disk: the C library's functions that change files, as the standard library calls them.
//!
//! The test's executable defines them itself, so that the linker takes these and not those of the C library. Each does what it
//! must, and tells the recorder of the thread, if there is one. lsm-tree does its own input and output, and so its calls can
//! be seen without a change of it. What is called otherwise (tempfile renames by a system call of its own) is found by
//! [`Recorder`] when it looks, and its last check tells of what it has not seen.
//!
//! No sync reaches the real disk: what is durable is the recorder's to know, and nothing here has to outlive the test.

use crate::recorder::{Call, Recorder};
use libc::{
    AT_FDCWD, AT_REMOVEDIR, c_char, c_int, c_long, c_uint, c_void, off64_t, size_t, ssize_t,
};
use std::cell::RefCell;
use std::ffi::CStr;
use std::path::{Path, PathBuf};

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Records the calls of this thread while `run` runs.
pub fn record<R>(recorder: Recorder, run: impl FnOnce() -> R) -> (Recorder, R) {
    RECORDER.with(|active| *active.borrow_mut() = Some(recorder));
    let done = run();
    let recorder = RECORDER.with(|active| active.borrow_mut().take());
    (recorder.expect("it was put there"), done)
}

/// The recorder of this thread; `None` outside of [`record`], and for calls that the recorder itself makes.
pub fn with<R>(ask: impl FnOnce(&mut Recorder) -> R) -> Option<R> {
    RECORDER
        .try_with(|active| Some(ask(active.try_borrow_mut().ok()?.as_mut()?)))
        .ok()?
}

fn fails(errno: c_int) -> c_int {
    // SAFETY: the address of this thread's error number.
    unsafe { *libc::__errno_location() = errno };
    -1
}

fn narrow(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

/// # Safety
/// As [`CStr::from_ptr`].
unsafe fn path_of(path: *const c_char) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: the caller's word.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    Path::new(std::ffi::OsStr::from_bytes(bytes)).to_owned()
}

/// # Safety
/// As open(2). A caller that gives no mode gives no `O_CREAT` either, and what is in the register then is not looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's word.
    unsafe { openat64(AT_FDCWD, path, flags, mode) }
}

/// # Safety
/// As openat(2); see [`open64`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_uint,
) -> c_int {
    // SAFETY: the caller's word.
    let name = unsafe { path_of(path) };
    if let Some(Err(errno)) = with(|recorder| recorder.opens(dir, &name, flags)) {
        return fails(errno);
    }
    // SAFETY: the caller's arguments.
    let fd = narrow(unsafe { libc::syscall(libc::SYS_openat, dir, path, flags, mode) });
    if fd >= 0 {
        with(|recorder| recorder.opened(dir, &name, flags, fd));
    }
    fd
}

/// # Safety
/// As close(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    with(|recorder| recorder.closed(fd));
    // SAFETY: the caller's argument.
    narrow(unsafe { libc::syscall(libc::SYS_close, fd) })
}

/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
    let at = with(|recorder| recorder.knows(fd))
        .unwrap_or(false)
        .then(|| {
            // SAFETY: no memory is touched.
            unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }
        });
    // SAFETY: the caller's arguments.
    unsafe {
        put(fd, bytes, len, at, |len| {
            libc::syscall(libc::SYS_write, fd, bytes, len)
        })
    }
}

/// # Safety
/// As pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    fd: c_int,
    bytes: *const c_void,
    len: size_t,
    at: off64_t,
) -> ssize_t {
    let known = with(|recorder| recorder.knows(fd))
        .unwrap_or(false)
        .then_some(at);
    // SAFETY: the caller's arguments.
    unsafe {
        put(fd, bytes, len, known, |len| {
            libc::syscall(libc::SYS_pwrite64, fd, bytes, len, at)
        })
    }
}

/// # Safety
/// `bytes` points to `len` of them.
unsafe fn put(
    fd: c_int,
    bytes: *const c_void,
    len: size_t,
    at: Option<i64>,
    do_it: impl FnOnce(size_t) -> c_long,
) -> ssize_t {
    let room = match at.and_then(|_| with(|recorder| recorder.writes(fd, len))) {
        Some(Err(errno)) => return fails(errno) as ssize_t,
        Some(Ok(room)) => room,
        None => len,
    };
    let written = do_it(room);
    if let (Some(at), Ok(count)) = (at, usize::try_from(written)) {
        // SAFETY: the caller's word, and no more was written than it gave.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), count) };
        with(|recorder| recorder.wrote(fd, at.unsigned_abs(), bytes));
    }
    ssize_t::try_from(written).unwrap_or(-1)
}

/// # Safety
/// As fsync(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    match with(|recorder| recorder.syncs(fd)) {
        Some(Err(errno)) => fails(errno),
        _ => 0,
    }
}

/// # Safety
/// As fdatasync(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: the caller's argument.
    unsafe { fsync(fd) }
}

/// # Safety
/// As ftruncate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(fd: c_int, len: off64_t) -> c_int {
    // SAFETY: the caller's arguments.
    let done = narrow(unsafe { libc::syscall(libc::SYS_ftruncate, fd, len) });
    if done == 0 {
        with(|recorder| recorder.truncated(fd, len.unsigned_abs()));
    }
    done
}

fn changing(call: Call, do_it: impl FnOnce() -> c_long) -> c_int {
    if let Some(Err(errno)) = with(|recorder| recorder.changes(&call)) {
        return fails(errno);
    }
    let done = narrow(do_it());
    if done == 0 {
        with(|recorder| recorder.changed(&call));
    }
    done
}

/// # Safety
/// As rename(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's arguments.
    let call = unsafe { Call::Rename(path_of(from), path_of(to)) };
    // SAFETY: the caller's arguments.
    changing(call, || unsafe {
        libc::syscall(libc::SYS_rename, from, to)
    })
}

/// # Safety
/// As unlink(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's argument.
    unsafe { unlinkat(AT_FDCWD, path, 0) }
}

/// # Safety
/// As rmdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the caller's argument.
    unsafe { unlinkat(AT_FDCWD, path, AT_REMOVEDIR) }
}

/// # Safety
/// As unlinkat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's argument.
    let call = Call::Remove(dir, unsafe { path_of(path) });
    // SAFETY: the caller's arguments.
    changing(call, || unsafe {
        libc::syscall(libc::SYS_unlinkat, dir, path, flags)
    })
}

/// # Safety
/// As mkdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: c_uint) -> c_int {
    // SAFETY: the caller's argument.
    let call = Call::MakeDir(unsafe { path_of(path) });
    // SAFETY: the caller's arguments.
    changing(call, || unsafe {
        libc::syscall(libc::SYS_mkdir, path, mode)
    })
}
