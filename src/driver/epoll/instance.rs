//! The system calls on one epoll instance: epoll(7).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use libc::epoll_event;

/// Longer timeouts are cut to this: the kernel's time arithmetic is signed 64-bit nanoseconds.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) struct Instance {
    fd: OwnedFd,
    /// Where the kernel puts what it reports.
    events: Vec<epoll_event>,
    /// epoll_pwait2(2) is there: Linux 5.11, and the sandbox lets it through.
    has_pwait2: bool,
}

impl Instance {
    /// `batch` is the most events that one wait reports.
    pub fn new(batch: usize) -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is used as a descriptor.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Instance {
            // SAFETY: epoll_create1 succeeded, so this is a new descriptor without another owner.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![epoll_event { events: 0, u64: 0 }; batch],
            has_pwait2: true,
        })
    }

    /// Registers the file that `fd` refers to, under this number.
    pub fn add(&self, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, data)
    }

    /// Changes a registration. What is ready then is reported, edge-triggered or not.
    pub fn modify(&self, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, data)
    }

    pub fn delete(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, what: libc::c_int, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        let mut event = epoll_event { events, u64: data };
        // SAFETY: the pointer is to one epoll_event.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), what, fd, &raw mut event) }).map(drop)
    }

    /// Waits for events and returns how many there are; a signal ends the wait with none.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let result = match timeout {
            Some(timeout) if !timeout.is_zero() => self.wait_at_most(timeout.min(LONGEST)),
            Some(_) => self.wait_milliseconds(0),
            None => self.wait_milliseconds(-1),
        };
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => Ok(0),
            result => result,
        }
    }

    /// The data and events of the `n`th event of the last wait.
    #[inline]
    pub fn event(&self, n: usize) -> (u64, u32) {
        let event = self.events[n];
        (event.u64, event.events)
    }

    fn wait_at_most(&mut self, timeout: Duration) -> io::Result<usize> {
        if self.has_pwait2 {
            match self.wait_nanoseconds(timeout) {
                // EPERM is what sandboxes older than the call say.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    self.has_pwait2 = false;
                }
                result => return result,
            }
        }
        // Rounded up: a timer must not find itself woken before its time.
        let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
        self.wait_milliseconds(milliseconds.try_into().unwrap_or(libc::c_int::MAX))
    }

    fn wait_nanoseconds(&mut self, timeout: Duration) -> io::Result<usize> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos() as _,
        };
        // SAFETY: `events` has room for as many events as the call is told, the timespec lives
        // until it returns, and no signal mask is given.
        let result = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as libc::c_int,
                &raw const timeout,
                ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        check(result as libc::c_int).map(|count| count as usize)
    }

    fn wait_milliseconds(&mut self, timeout: libc::c_int) -> io::Result<usize> {
        let room = self.events.len() as libc::c_int;
        // SAFETY: `events` has room for as many events as the call is told.
        let result = unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), room, timeout)
        };
        check(result).map(|count| count as usize)
    }
}

#[inline]
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn without_pwait2_a_timeout_is_rounded_up() {
        let mut instance = Instance::new(4).unwrap();
        instance.has_pwait2 = false;
        for timeout in [Duration::from_nanos(1), Duration::from_micros(2500)] {
            let start = Instant::now();
            assert_eq!(instance.wait(Some(timeout)).unwrap(), 0);
            assert!(start.elapsed() >= timeout, "{timeout:?}");
        }
    }
}
