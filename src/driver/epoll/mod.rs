//! The epoll backend, for where io_uring is not to be had.
//!
//! The operations on one descriptor share a *registration*, which the kernel knows by its key.
//! Epoll keeps it for a file and a descriptor number until the file is closed everywhere, which
//! need not be when the number is: a duplicate or a forked child may hold it. So a number that
//! comes to mean another file gets another registration, and what the kernel reports of the old one
//! finds no operation. Nor can it make the loop spin, since nothing is level-triggered: a
//! registration with one-shot polls only is disarmed by its first event (`EPOLLONESHOT`), all
//! others report changes (`EPOLLET`). Arming one makes the kernel look what is ready.

mod instance;
mod work;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::backend::{Backend, Completion, Operation};
use super::slab::{Key, Slab};
use super::{Config, OpId, SetupError};
use instance::Instance;
use work::{InFlight, Progress, Started, descriptor};

/// The data of the eventfd's registration. Beyond the slab's indices.
const WAKE: u64 = u64::MAX;
/// The most events that one wait takes, whatever the configuration says.
const LARGEST_BATCH: u32 = 4096;

pub(super) struct Epoll {
    instance: Instance,
    process: libc::pid_t,
    ops: InFlight,
    registrations: Slab<Registration>,
    /// The registration of the file that a number means, as far as we know.
    current: HashMap<RawFd, Key>,
    /// Registrations to arm before the next wait.
    due: Vec<Key>,
    completions: VecDeque<Completion>,
}

struct Registration {
    fd: RawFd,
    /// As far as we know, the number still means the file that is registered.
    is_current: bool,
    ops: Vec<OpId>,
    /// The kernel has it, unless the file was closed.
    known: bool,
    edge_triggered: bool,
    is_due: bool,
}

impl Registration {
    fn new(fd: RawFd) -> Self {
        Registration {
            fd,
            is_current: true,
            ops: Vec::new(),
            known: false,
            edge_triggered: false,
            is_due: false,
        }
    }
}

impl Epoll {
    /// Makes an instance that watches `eventfd`.
    pub fn new(config: &Config, eventfd: RawFd) -> Result<Self, SetupError> {
        let batch = config.entries.clamp(1, LARGEST_BATCH) as usize;
        let failed = |error| SetupError::failed("epoll_create1", &error);
        let instance = Instance::new(batch).map_err(failed)?;
        // Edge-triggered: each write is news, and nobody has to read it.
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        instance
            .add(eventfd, events, WAKE)
            .map_err(|error| SetupError::failed("epoll_ctl", &error))?;
        Ok(Epoll {
            instance,
            process: current_process(),
            ops: InFlight::default(),
            registrations: Slab::new(0),
            current: HashMap::new(),
            due: Vec::new(),
            completions: VecDeque::new(),
        })
    }

    fn register(&mut self, fd: RawFd) -> io::Result<Key> {
        let key = self.registrations.insert(Registration::new(fd))?;
        self.current.insert(fd, key);
        Ok(key)
    }

    /// Forgets a registration without operations, and makes the kernel forget it.
    fn unregister(&mut self, key: Key) {
        let Some(registration) = self.registrations.remove(key) else { return };
        if registration.is_current {
            self.current.remove(&registration.fd);
            if registration.known {
                // Fails where the file is closed, and the registration gone with it.
                let _ = self.instance.delete(registration.fd);
            }
        }
    }

    fn make_due(&mut self, key: Key) {
        if let Some(registration) = self.registrations.get_mut(key)
            && !registration.is_due
        {
            registration.is_due = true;
            self.due.push(key);
        }
    }

    fn arm_due(&mut self) {
        for key in std::mem::take(&mut self.due) {
            if let Some(registration) = self.registrations.get_mut(key) {
                registration.is_due = false;
                self.begin_new(key);
                self.arm(key);
            }
        }
    }

    /// Tries what is new.
    fn begin_new(&mut self, key: Key) {
        let Epoll { registrations, ops, completions, .. } = self;
        let Some(registration) = registrations.get_mut(key) else { return };
        let fd = registration.fd;
        registration.ops.retain(|&id| match ops.get_mut(id) {
            Some(started) if !started.armed => {
                let progress =
                    started.begin(fd, &mut |completion| completions.push_back(completion));
                if progress == Progress::Ended {
                    ops.remove(id);
                }
                progress != Progress::Ended
            }
            started => started.is_some(),
        });
    }

    /// Tells the kernel what to look for. It reports what is ready now, and so whatever operations
    /// of this registration have left undone.
    fn arm(&mut self, key: Key) {
        let Some(registration) = self.registrations.get_mut(key) else { return };
        let fd = registration.fd;
        if registration.ops.is_empty() {
            return self.unregister(key);
        }
        let mut events = 0;
        registration.edge_triggered = false;
        for id in &registration.ops {
            if let Some(started) = self.ops.get_mut(*id) {
                events |= started.events();
                registration.edge_triggered |= started.is_edge_triggered();
            }
        }
        events |=
            if registration.edge_triggered { libc::EPOLLET } else { libc::EPOLLONESHOT } as u32;
        let data = key.user_data();
        let result = if registration.known {
            self.instance.modify(fd, events, data)
        } else {
            match self.instance.add(fd, events, data) {
                // The file has come back to a number under which it was registered before.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    self.instance.modify(fd, events, data)
                }
                result => result,
            }
        };
        match result {
            Ok(()) => {
                registration.known = true;
                for id in &registration.ops {
                    if let Some(started) = self.ops.get_mut(*id) {
                        started.armed = true;
                    }
                }
            }
            Err(error) if registration.known && error.raw_os_error() == Some(libc::ENOENT) => {
                self.move_new(key);
            }
            Err(error) => self.end_new(key, &error),
        }
    }

    /// The number has come to mean another file since the registration was made: what is new gets
    /// one of its own. What is not is about the old file, and stays silent until it is cancelled.
    fn move_new(&mut self, key: Key) {
        let new = self.take_new(key);
        let Some(old) = self.registrations.get_mut(key) else { return };
        let fd = old.fd;
        old.is_current = false;
        if old.ops.is_empty() {
            self.registrations.remove(key);
        }
        self.current.remove(&fd);
        if new.is_empty() {
            return;
        }
        match self.register(fd) {
            Ok(key) => {
                for &id in &new {
                    if let Some(started) = self.ops.get_mut(id) {
                        started.registration = key;
                    }
                }
                if let Some(registration) = self.registrations.get_mut(key) {
                    registration.ops = new;
                }
                self.arm(key);
            }
            Err(error) => self.end(&new, &error),
        }
    }

    /// What is new cannot be armed.
    fn end_new(&mut self, key: Key, error: &io::Error) {
        let new = self.take_new(key);
        self.end(&new, error);
        if self.registrations.get(key).is_some_and(|registration| registration.ops.is_empty()) {
            self.unregister(key);
        }
    }

    fn take_new(&mut self, key: Key) -> Vec<OpId> {
        let Epoll { registrations, ops, .. } = self;
        let Some(registration) = registrations.get_mut(key) else { return Vec::new() };
        registration
            .ops
            .extract_if(.., |id| ops.get_mut(*id).is_some_and(|started| !started.armed))
            .collect()
    }

    fn end(&mut self, ids: &[OpId], error: &io::Error) {
        for &id in ids {
            if let Some(started) = self.ops.remove(id) {
                self.completions.push_back(match error.raw_os_error() {
                    // Epoll takes no file that never makes anybody wait.
                    Some(libc::EPERM) => started.always_ready(),
                    _ => started.failed(error),
                });
            }
        }
    }

    fn wait_for_events(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        for n in 0..self.instance.wait(timeout)? {
            let (data, ready) = self.instance.event(n);
            self.on_event(Key::from_user_data(data), ready);
        }
        Ok(())
    }

    /// Goes on with the operations of a registration. None has the key of the eventfd's.
    #[inline]
    fn on_event(&mut self, key: Key, ready: u32) {
        let Epoll { registrations, ops, completions, .. } = self;
        let Some(registration) = registrations.get_mut(key) else { return };
        if !registration.is_current {
            return;
        }
        let fd = registration.fd;
        let mut again = !registration.edge_triggered;
        registration.ops.retain(|&id| {
            let Some(started) = ops.get_mut(id) else { return false };
            let report = &mut |completion| completions.push_back(completion);
            let progress = started.go_on(fd, ready, report);
            again |= progress == Progress::Yields;
            if progress == Progress::Ended {
                ops.remove(id);
            }
            progress != Progress::Ended
        });
        if !registration.ops.is_empty() {
            if again {
                self.make_due(key);
            }
        } else if registration.edge_triggered {
            self.unregister(key);
        }
        // A disarmed one stays: the next one-shot poll arms it with a single call.
    }
}

impl Backend for Epoll {
    fn name(&self) -> &'static str {
        "epoll"
    }

    /// On any thread, but not in a forked child, whose calls would reach the parent's instance.
    fn is_usable(&self) -> bool {
        self.process == current_process()
    }

    unsafe fn start(&mut self, id: OpId, operation: Operation) -> io::Result<()> {
        let fd = descriptor(&operation);
        let key = match self.current.get(&fd) {
            Some(key) => *key,
            None => self.register(fd)?,
        };
        if let Some(registration) = self.registrations.get_mut(key) {
            registration.ops.push(id);
        }
        self.ops.insert(Started::new(id, key, &operation));
        self.make_due(key);
        Ok(())
    }

    fn cancel(&mut self, id: OpId) -> io::Result<()> {
        // One that has ended has its completion in the queue.
        let Some(started) = self.ops.remove(id) else { return Ok(()) };
        let cancelled = io::Error::from_raw_os_error(libc::ECANCELED);
        self.completions.push_back(started.failed(&cancelled));
        if let Some(registration) = self.registrations.get_mut(started.registration) {
            registration.ops.retain(|other| *other != id);
            if registration.ops.is_empty() {
                self.unregister(started.registration);
            }
        }
        Ok(())
    }

    /// Cancelling takes effect at once.
    fn settle(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        self.arm_due();
        // Only a call can tell what is ready, and a loop that is never idle must hear of it too.
        if self.ops.is_empty() { Ok(()) } else { self.wait_for_events(Some(Duration::ZERO)) }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.arm_due();
        if timeout == Some(Duration::ZERO) || !self.completions.is_empty() {
            return self.submit();
        }
        self.wait_for_events(timeout)
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }
}

fn current_process() -> libc::pid_t {
    // SAFETY: getpid(2) has no preconditions.
    unsafe { libc::getpid() }
}
