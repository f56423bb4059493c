//! Reading and writing of pipes, and of sockets and character devices in their place.
//!
//! The calls never wait on a descriptor that [`set_nonblocking`] was called for.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::slice;

use super::socket::{IOV_MAX, check, file_type, retry};

/// What a descriptor refers to, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A pipe(7) or FIFO.
    Pipe,
    Socket,
    /// A character device: a terminal, `/dev/null`, ...
    Device,
    Other,
}

impl FileKind {
    /// Fails with the errors of fstat(2).
    pub fn of(fd: RawFd) -> io::Result<Self> {
        Ok(match file_type(fd)? {
            libc::S_IFIFO => FileKind::Pipe,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::Device,
            _ => FileKind::Other,
        })
    }
}

/// How many bytes a pipe can hold: fcntl(2) with `F_GETPIPE_SZ`. Fails for other files.
pub fn capacity(fd: RawFd) -> io::Result<usize> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) } as _)
}

/// Makes calls fail with `EAGAIN` instead of waiting: fcntl(2) with `O_NONBLOCK`. This holds for
/// everybody who has the file from the same open(2), other processes too.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) } as _)? as libc::c_int;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } as _).map(drop)
}

/// Reads what is there, 0 at the end of the file: read(2).
///
/// # Errors
/// Those of read(2), `EAGAIN` if there is nothing.
#[inline]
pub fn read(fd: RawFd, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of an exclusively borrowed slice.
    retry(|| unsafe { libc::read(fd, buf.as_mut_ptr().cast(), buf.len()) })
}

/// Like [`read`], into memory that may be uninitialised; returns what was read.
#[inline]
pub fn read_uninit(fd: RawFd, room: &mut [MaybeUninit<u8>]) -> io::Result<&mut [u8]> {
    let start = room.as_mut_ptr();
    // SAFETY: the pointer and length are those of an exclusively borrowed slice.
    let count = retry(|| unsafe { libc::read(fd, start.cast(), room.len()) })?;
    // SAFETY: the kernel has written so many bytes, at most as many as there is room for.
    Ok(unsafe { slice::from_raw_parts_mut(start.cast(), count) })
}

/// Writes as much as there is room for: write(2).
///
/// # Errors
/// Those of write(2), `EAGAIN` if there is no room.
#[inline]
pub fn write(fd: RawFd, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a borrowed slice.
    retry(|| unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) })
}

/// Like [`write`], of several parts as if they were one: writev(2). Parts beyond the 1024th are
/// not written, as if there had been no room for them.
#[inline]
pub fn write_vectored(fd: RawFd, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let count = parts.len().min(IOV_MAX) as libc::c_int;
    // SAFETY: std guarantees that IoSlice is laid out like iovec; as many valid parts as `count`
    // says are borrowed during the call.
    retry(|| unsafe { libc::writev(fd, parts.as_ptr().cast(), count) })
}
