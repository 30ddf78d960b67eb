//! Shared memory: sealed memfds and the only place that touches mapped bytes.
//!
//! A mapping's bytes may change at any moment by another process's hand. Hence nothing here ever makes a `&[u8]` of
//! them: words are atomics, everything else is copied in or out, and whoever copied out works with the copy. The seal
//! against shrinking is what makes every access in bounds one that cannot fault.
//!
//! **The tolerated race.** A copy may race with a write by another process. The language calls that a data race and promises nothing
//! about it; what is relied on is what compilers and machines do: the copy happens, once, and gets some bytes, old, new or mixed.
//! Nobody acts on them before they were checked, by a position or sequence that is an atomic and by a CRC. Words of a read-only
//! mapping are loaded by [`Mapping::load`] alone, since a read-only page bears no other atomic access.
//!
//! Beside this the crate has unsafe code only in its own tests, and where inherited descriptors are taken over: `inherit`, and
//! `testing` in its place.

use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence, fence};

/// Makes a sealed memfd of `bytes` zero bytes: its size never changes again.
pub(crate) fn sealed_memfd(name: &std::ffi::CStr, bytes: u64) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(bytes)?;
    let fd = OwnedFd::from(file);
    let seals = nix::fcntl::SealFlag::F_SEAL_SHRINK
        | nix::fcntl::SealFlag::F_SEAL_GROW
        | nix::fcntl::SealFlag::F_SEAL_SEAL;
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}

/// Makes a memfd with this content, which nobody can change any more.
pub(crate) fn frozen_memfd(name: &std::ffi::CStr, content: &[u8]) -> io::Result<OwnedFd> {
    use nix::fcntl::SealFlag;
    let mut file = File::from(memfd_create(
        name,
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?);
    file.write_all(content)?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// A second descriptor of the same memfd that cannot be mapped for writing (BOARD-1).
///
/// It is a new open file description with read access only, so that `mmap` and `mprotect` refuse write access, whatever
/// the holder asks for. (A seal against future writes would not do: the owner of a board maps it anew after each restart.)
/// The fence is against accidents: code of the same user that means harm could open the file again through /proc.
pub(crate) fn read_only(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(File::open(path)?.into())
}

/// A shared mapping of a whole memfd.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping is plain memory that stays mapped until drop; all access goes through atomics and raw copies.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent access goes through atomics, or is the tolerated race of the module's documentation.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd`.
    ///
    /// # Errors
    /// The file is shorter than `len`, not sealed against shrinking, or cannot be mapped.
    pub(crate) fn new(fd: impl AsFd, len: usize, writable: bool) -> io::Result<Mapping> {
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        let size = file.metadata()?.len();
        if size != len as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("shared memory has {size} bytes, {len} expected"),
            ));
        }
        // Without the seal, another process could shrink the file and turn our reads into SIGBUS.
        let seals = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GET_SEALS)?;
        if seals & nix::fcntl::SealFlag::F_SEAL_SHRINK.bits() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "shared memory is not sealed",
            ));
        }
        let prot = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a fresh shared mapping at an address of the kernel's choice overlaps nothing; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Mapping {
            base,
            len,
            writable,
        })
    }

    /// Leaves the mapping out of core dumps. A dump would touch every page, and so take all the memory that rings may grow to, on a
    /// machine that may have just run short of it. What killed a consumer was copied out before it was looked at, and is in the core
    /// with the rest of its heap. Only a saving, so that a kernel that refuses is not asked why.
    pub(crate) fn keep_out_of_cores(&self) {
        // SAFETY: exactly the range that `new` mapped; the advice changes nothing of what is there.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_DONTDUMP) };
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "access beyond shared memory: {offset}+{len} of {}",
            self.len
        );
    }

    /// The 64-bit word at `offset`.
    ///
    /// # Panics
    /// `offset` is not aligned or lies outside.
    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8));
        // SAFETY: in bounds and aligned (checked above, the base is page aligned), mapped until `self` is dropped, and
        // every access of a correct process to these bytes is atomic; for others see the tolerated race.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// What the word at `offset` is, with everything that was written before it (Acquire). Also for read-only mappings, on which an
    /// atomic access is defined only if it is a small Relaxed load: hence the fence.
    ///
    /// # Panics
    /// As for [`Mapping::word`].
    pub(crate) fn load(&self, offset: usize) -> u64 {
        let value = self.word(offset).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        value
    }

    /// The 32-bit word at `offset`.
    ///
    /// # Panics
    /// `offset` is not aligned or lies outside.
    pub(crate) fn half(&self, offset: usize) -> &AtomicU32 {
        self.check(offset, 4);
        assert!(offset.is_multiple_of(4));
        // SAFETY: as for `word`.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// They do not fit, or the mapping is read-only.
    #[inline]
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        assert!(self.writable, "BOARD-1: write to read-only shared memory");
        // SAFETY: in bounds and writable (checked above); `bytes` is ours and cannot overlap a foreign mapping. Readers that come
        // too early are the tolerated race.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.base.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    /// Gives the memory of whole pages back: they read as zeros, and cost nothing until they are written again. Only a saving, so
    /// that a kernel that refuses is not asked why.
    ///
    /// # Panics
    /// They lie outside, or the mapping is read-only.
    pub(crate) fn forget(&self, offset: usize, len: usize) {
        self.check(offset, len);
        assert!(self.writable, "BOARD-1: write to read-only shared memory");
        // The machine's pages, which may be larger than a ring's: the kernel would round a length up, over what is kept.
        let page = page_bytes();
        let (from, to) = (offset.next_multiple_of(page), (offset + len) / page * page);
        if from >= to {
            return;
        }
        // SAFETY: in bounds and writable (checked above), whole pages of the mapping, which begins with one. To everybody it
        // is as if zeros were written there; see `write`.
        unsafe {
            libc::madvise(
                self.base.as_ptr().add(from).cast(),
                to - from,
                libc::MADV_REMOVE,
            )
        };
    }

    /// Copies bytes out. They may be torn when another process writes them meanwhile: callers check what they got.
    ///
    /// # Panics
    /// They lie outside.
    #[inline]
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.check(offset, bytes.len());
        // SAFETY: in bounds (checked above); `bytes` is ours and cannot overlap a foreign mapping. A writer meanwhile is the
        // tolerated race.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
        // What the caller checks and what it uses must be this copy: the compiler may not read the source again later.
        compiler_fence(Ordering::SeqCst);
    }

    /// [`Mapping::read`] to the end of a vector, which is not filled with zeros first.
    ///
    /// # Panics
    /// They lie outside.
    pub(crate) fn append_to(&self, bytes: &mut Vec<u8>, offset: usize, len: usize) {
        self.check(offset, len);
        bytes.reserve(len);
        let end = bytes.len();
        // SAFETY: in bounds (checked above); `reserve` has made room for `len` bytes from `end` on, which are ours, cannot
        // overlap a foreign mapping, and are initialized before the length says that they are there. A writer meanwhile is the
        // tolerated race.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset),
                bytes.as_mut_ptr().add(end),
                len,
            );
            bytes.set_len(end + len);
        }
        // As in `read`.
        compiler_fence(Ordering::SeqCst);
    }
}

/// Bytes of a page of this machine.
fn page_bytes() -> usize {
    static BYTES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *BYTES.get_or_init(|| {
        let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .and_then(|bytes| usize::try_from(bytes).ok());
        bytes.expect("a page has a size")
    })
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of the mapping that begins at an address, as the kernel shows them.
    fn flags(base: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{base:x}-");
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:"));
        flags.expect("it is mapped").to_owned()
    }

    #[test]
    fn what_is_kept_out_of_cores_is_marked_so() {
        let fd = sealed_memfd(c"test", 1 << 16).unwrap();
        let map = Mapping::new(&fd, 1 << 16, true).unwrap();
        let base = map.base.as_ptr().addr();
        assert!(!flags(base).contains(" dd"));
        map.keep_out_of_cores();
        assert!(flags(base).contains(" dd"), "{}", flags(base));
    }

    #[test]
    fn a_word_is_loaded_from_a_read_only_mapping() {
        let fd = sealed_memfd(c"test", 4096).unwrap();
        let map = Mapping::new(&fd, 4096, true).unwrap();
        map.word(64).store(7, Ordering::Release);
        let fd = read_only(&fd).unwrap();
        assert_eq!(Mapping::new(&fd, 4096, false).unwrap().load(64), 7);
    }
}
