//! Operations in flight on epoll, and what each one does when its descriptor is ready.

use std::io;
use std::os::fd::{IntoRawFd, RawFd};
use std::slice;

use crate::driver::backend::{Completion, Operation};
use crate::driver::slab::Key;
use crate::driver::{OpId, socket};

/// Connections or pieces that one operation takes in a row before others have their turn.
const IN_A_ROW: usize = 32;

/// What epoll_wait(2) reports whether asked or not.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;

pub(super) struct Started {
    pub id: OpId,
    pub registration: Key,
    /// The kernel has been told, and has looked once whether the descriptor is ready.
    pub armed: bool,
    work: Work,
}

enum Work {
    Poll { events: u32, multishot: bool },
    Accept,
    Send { data: *const u8, len: usize, sent: usize },
}

/// How far an operation has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Waits,
    /// It could do more at once.
    Yields,
    Ended,
}

pub(super) fn descriptor(operation: &Operation) -> RawFd {
    match *operation {
        Operation::Poll { fd, .. } | Operation::Accept { fd } | Operation::Send { fd, .. } => fd,
    }
}

impl Started {
    pub fn new(id: OpId, registration: Key, operation: &Operation) -> Self {
        let work = match *operation {
            Operation::Poll { events, multishot, .. } => Work::Poll { events, multishot },
            Operation::Accept { .. } => Work::Accept,
            Operation::Send { data, len, .. } => Work::Send { data, len: len as usize, sent: 0 },
        };
        Started { id, registration, armed: false, work }
    }

    /// The events to ask the kernel for.
    pub fn events(&self) -> u32 {
        match self.work {
            Work::Poll { events, .. } => events,
            Work::Accept => IN,
            Work::Send { .. } => OUT,
        }
    }

    /// Whether it wants to hear of changes, again and again.
    pub fn is_edge_triggered(&self) -> bool {
        !matches!(self.work, Work::Poll { multishot: false, .. })
    }

    /// What can be done before the kernel is asked. Finds out, too, which descriptors it cannot be
    /// done with at all.
    pub fn begin(&mut self, fd: RawFd, report: &mut impl FnMut(Completion)) -> Progress {
        match self.work {
            Work::Poll { .. } => Progress::Waits,
            Work::Accept => {
                // accept(2) has no flag for that. Where it fails, so does accepting.
                let _ = socket::set_nonblocking(fd);
                self.go_on(fd, IN, report)
            }
            Work::Send { .. } => self.go_on(fd, OUT, report),
        }
    }

    /// Does what has become possible.
    pub fn go_on(
        &mut self,
        fd: RawFd,
        ready: u32,
        report: &mut impl FnMut(Completion),
    ) -> Progress {
        let ready = ready & (self.events() | ALWAYS);
        let user_data = self.id.user_data();
        match &mut self.work {
            _ if ready == 0 => Progress::Waits,
            Work::Poll { multishot, .. } => {
                report(Completion::new(user_data, ready as i32, *multishot));
                if *multishot { Progress::Waits } else { Progress::Ended }
            }
            Work::Accept => self.accept(fd, report),
            Work::Send { .. } => self.send(fd, report),
        }
    }

    fn accept(&self, fd: RawFd, report: &mut impl FnMut(Completion)) -> Progress {
        let user_data = self.id.user_data();
        for _ in 0..IN_A_ROW {
            match socket::accept(fd) {
                Ok(connection) => {
                    report(Completion::new(user_data, connection.into_raw_fd(), true));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Waits,
                Err(error) => {
                    report(self.failed(&error));
                    return Progress::Ended;
                }
            }
        }
        Progress::Yields
    }

    fn send(&mut self, fd: RawFd, report: &mut impl FnMut(Completion)) -> Progress {
        for _ in 0..IN_A_ROW {
            let Work::Send { data, len, sent } = &mut self.work else { break };
            // SAFETY: whoever called start() keeps these bytes valid and untouched until the
            // completion is taken, which this operation has not reported yet.
            let rest = unsafe { slice::from_raw_parts(data.add(*sent), *len - *sent) };
            match socket::send(fd, rest) {
                Ok(count) => {
                    *sent += count;
                    if count == 0 || *sent == *len {
                        let result = *sent as i32;
                        report(Completion::new(self.id.user_data(), result, false));
                        return Progress::Ended;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Waits,
                Err(error) => {
                    report(self.failed(&error));
                    return Progress::Ended;
                }
            }
        }
        Progress::Yields
    }

    /// The last completion of an operation whose file epoll does not take, since it is always
    /// ready: a regular file, a directory.
    pub fn always_ready(&self) -> Completion {
        let ready = self.events() & (IN | OUT);
        // As from the ring where the file cannot have the events.
        let result = if ready == 0 { -libc::EINVAL } else { ready as i32 };
        Completion::new(self.id.user_data(), result, false)
    }

    /// The last completion of an operation that comes to nothing. A send that has got somewhere
    /// says how far.
    pub fn failed(&self, error: &io::Error) -> Completion {
        let result = match self.work {
            Work::Send { sent, .. } if sent > 0 => sent as i32,
            _ => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        Completion::new(self.id.user_data(), result, false)
    }
}

/// Operations by the indices of their ids, which the driver's slab keeps dense.
#[derive(Default)]
pub(super) struct InFlight {
    slots: Vec<Option<Started>>,
    len: usize,
}

impl InFlight {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn insert(&mut self, started: Started) {
        let index = started.id.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(started);
        self.len += 1;
    }

    #[inline]
    pub fn get_mut(&mut self, id: OpId) -> Option<&mut Started> {
        self.slots.get_mut(id.index as usize)?.as_mut().filter(|started| started.id == id)
    }

    pub fn remove(&mut self, id: OpId) -> Option<Started> {
        self.get_mut(id)?;
        self.len -= 1;
        self.slots.get_mut(id.index as usize)?.take()
    }
}
