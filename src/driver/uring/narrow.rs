//! Polls that must not hear of the end of a stream. The kernel adds `POLLRDHUP` to what every poll
//! asks for: one for room to write would end at once, and again and again, while the peer has ended
//! its side of a connection and does not read.

use std::collections::HashMap;
use std::os::fd::RawFd;

/// What a poll may report although nobody asked.
const ALWAYS: u32 = (libc::POLLERR | libc::POLLHUP) as u32;
/// With these asked for, the end of a stream is welcome: it can be read.
const READING: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;

/// The one-shot polls to watch over, by `user_data`: their descriptors and events.
#[derive(Default)]
pub(super) struct Narrow(HashMap<u64, (RawFd, u32)>);

pub(super) enum Verdict {
    /// Not one of these polls, or its end.
    Pass,
    /// The end of a poll that goes on as multishot: cancel that.
    Stop,
    /// Not what was asked for: go on with a multishot poll, which reports changes only.
    GoOn(RawFd, u32),
    Ignore,
}

impl Narrow {
    #[inline]
    pub fn note(&mut self, user_data: u64, fd: RawFd, events: u32) {
        if events & READING == 0 {
            self.0.insert(user_data, (fd, events));
        }
    }

    pub fn forget(&mut self, user_data: u64) {
        self.0.remove(&user_data);
    }

    #[inline]
    pub fn judge(&mut self, user_data: u64, result: i32, more: bool) -> Verdict {
        if self.0.is_empty() { Verdict::Pass } else { self.look_up(user_data, result, more) }
    }

    fn look_up(&mut self, user_data: u64, result: i32, more: bool) -> Verdict {
        let Some(&(fd, events)) = self.0.get(&user_data) else { return Verdict::Pass };
        let asked_for = result < 0 || result as u32 & (events | ALWAYS) != 0;
        match (asked_for, more) {
            (false, false) => Verdict::GoOn(fd, events),
            (false, true) => Verdict::Ignore,
            (true, _) => {
                self.0.remove(&user_data);
                if more { Verdict::Stop } else { Verdict::Pass }
            }
        }
    }
}
