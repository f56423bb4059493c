//! When the requests of a burst are due.

use std::time::{Duration, Instant};

/// The times at which requests are to be begun, up to a deadline.
#[derive(Debug)]
pub enum Schedule {
    /// As soon as a connection has nothing else to do.
    Closed { deadline: Instant },
    /// At a fixed rate, whatever becomes of them.
    Open { next: Instant, interval: Duration, deadline: Instant },
}

impl Schedule {
    /// From `start` to `deadline`, at so many requests per second or without a rate.
    pub fn new(start: Instant, deadline: Instant, rate: Option<f64>) -> Self {
        match rate {
            None => Self::Closed { deadline },
            Some(rate) => {
                Self::Open { next: start, interval: Duration::from_secs_f64(1.0 / rate), deadline }
            }
        }
    }

    /// Since when a request is due by `now`, if one is; the next call is about the next one.
    pub fn take(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Self::Closed { deadline } => (now < *deadline).then_some(now),
            Self::Open { next, interval, deadline } => {
                let due = *next;
                let taken = due <= now && due < *deadline;
                if taken {
                    *next += *interval;
                }
                taken.then_some(due)
            }
        }
    }

    /// Whether more requests are due, at `now` or later.
    pub fn goes_on(&self, now: Instant) -> bool {
        match self {
            Self::Closed { deadline } => now < *deadline,
            Self::Open { next, deadline, .. } => next < deadline,
        }
    }

    /// How many requests have been due and not taken, once the deadline has passed.
    pub fn overdue(&self) -> u64 {
        match self {
            Self::Closed { .. } => 0,
            Self::Open { next, interval, deadline } => {
                let left = deadline.saturating_duration_since(*next).as_nanos();
                u64::try_from(left.div_ceil(interval.as_nanos().max(1))).unwrap_or(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn without_a_rate_a_request_is_due_at_once_until_the_deadline() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, start + MS, None);
        assert_eq!(schedule.take(start), Some(start));
        assert_eq!(schedule.take(start), Some(start));
        assert_eq!(schedule.take(start + MS), None);
        assert!(schedule.goes_on(start) && !schedule.goes_on(start + MS));
    }

    #[test]
    fn at_a_rate_requests_are_due_since_their_time_however_late_one_comes() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, start + 4 * MS, Some(1000.0));
        assert_eq!(schedule.take(start), Some(start));
        assert_eq!(schedule.take(start), None);
        let late = start + 10 * MS;
        assert_eq!(schedule.overdue(), 3);
        for expected in 1..4 {
            assert!(schedule.goes_on(late));
            assert_eq!(schedule.take(late), Some(start + expected * MS));
        }
        assert_eq!(schedule.take(late), None);
        assert_eq!(schedule.overdue(), 0);
        assert!(!schedule.goes_on(late));
    }
}
