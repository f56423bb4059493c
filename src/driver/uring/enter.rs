//! The one system call of a running ring: io_uring_enter(2).

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::time::Duration;

use io_uring::EnterFlags;

/// `struct __kernel_timespec`.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct GetEventsArg {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_microseconds: u32,
    timespec: u64,
}

/// Longer timeouts are cut to this: the kernel's time arithmetic is signed 64-bit nanoseconds.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How to call the kernel for one ring.
pub(super) struct Enter {
    fd: RawFd,
}

impl Enter {
    /// The descriptor is not registered with the thread, which would spare a look-up in each call:
    /// the ring could then not be closed by another thread, and would live as long as the first.
    pub fn new(ring: RawFd) -> Self {
        Enter { fd: ring }
    }

    /// Submits only.
    pub fn submit(&self, count: u32) -> io::Result<()> {
        self.call(count, 0, EnterFlags::empty(), ptr::null(), 0)
    }

    /// Submits, and posts the completions that are due.
    #[inline]
    pub fn flush(&self, count: u32) -> io::Result<()> {
        self.call(count, 0, EnterFlags::GETEVENTS, ptr::null(), 0)
    }

    /// Neither submits nor waits: for a ring with a poller.
    #[cold]
    pub fn nudge(&self, flags: EnterFlags) -> io::Result<()> {
        self.call(0, 0, flags, ptr::null(), 0)
    }

    /// Submits, and waits for a completion.
    #[inline]
    pub fn wait(&self, count: u32, timeout: Option<Duration>, flags: EnterFlags) -> io::Result<()> {
        let flags = flags | EnterFlags::GETEVENTS;
        let Some(timeout) = timeout else {
            return self.call(count, 1, flags, ptr::null(), 0);
        };
        let timeout = timeout.min(LONGEST);
        let timespec = Timespec {
            seconds: timeout.as_secs() as i64,
            nanoseconds: i64::from(timeout.subsec_nanos()),
        };
        let arg = GetEventsArg {
            sigmask: 0,
            sigmask_size: 0,
            min_wait_microseconds: 0,
            timespec: ptr::from_ref(&timespec) as u64,
        };
        self.call(
            count,
            1,
            flags | EnterFlags::EXT_ARG,
            ptr::from_ref(&arg),
            size_of::<GetEventsArg>(),
        )
    }

    #[inline]
    fn call(
        &self,
        to_submit: u32,
        min_complete: u32,
        flags: EnterFlags,
        arg: *const GetEventsArg,
        arg_size: usize,
    ) -> io::Result<()> {
        // SAFETY: `arg` is null, or points to a GetEventsArg that lives until the call returns, as
        // does the timespec in it. The entries submitted are vouched for by whoever pushed them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd,
                to_submit,
                min_complete,
                flags.bits(),
                arg,
                arg_size,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Takes away the errors that mean "later".
#[inline]
pub(super) fn transient_ok(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_transient(&error) => Ok(()),
        other => other,
    }
}

#[cold]
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY))
}
