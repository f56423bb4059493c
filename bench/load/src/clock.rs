//! Processor time: of this process, and of the servers under load.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};

/// Pause between two readings of a server that should come to rest.
const SETTLE_PAUSE: Duration = Duration::from_micros(200);

/// Readings after which a server that does not come to rest is taken as it is.
const SETTLE_READINGS: usize = 25;

/// Processor time this process has used.
pub fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Keeps this thread on one processor.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such CPU"));
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    rustix::thread::sched_setaffinity(None, &cpus)?;
    Ok(())
}

/// Processor time of all processes of a server, summed.
pub struct ServerClock(Vec<ProcessClock>);

impl ServerClock {
    /// The clock of the processes `pids`; an error if it cannot be read.
    pub fn new(pids: &[u32]) -> io::Result<Self> {
        pids.iter().map(|&pid| ProcessClock::new(pid)).collect::<io::Result<_>>().map(Self)
    }

    /// Nanoseconds used so far; never less than an earlier reading.
    pub fn read(&mut self) -> io::Result<u64> {
        self.0.iter_mut().map(ProcessClock::read).sum()
    }

    /// Like [`Self::read`], once the processes have come to rest.
    pub fn settled(&mut self) -> io::Result<u64> {
        let mut last = self.read()?;
        for _ in 0..SETTLE_READINGS {
            thread::sleep(SETTLE_PAUSE);
            let now = self.read()?;
            if now == last {
                break;
            }
            last = now;
        }
        Ok(last)
    }
}

/// Processor time of all threads of another process, from `/proc/PID/task/*/schedstat`.
///
/// The kernel's figure there is in nanoseconds and exact for a thread that sleeps; for one that
/// runs it may lag by a tick, hence [`ServerClock::settled`]. Threads born after the first reading
/// count from zero. Of a thread that ends, what it used after the last reading is lost.
struct ProcessClock {
    tasks: PathBuf,
    threads: HashMap<u32, u64>,
    ended: u64,
}

impl ProcessClock {
    fn new(pid: u32) -> io::Result<Self> {
        let mut clock = Self {
            tasks: PathBuf::from(format!("/proc/{pid}/task")),
            threads: HashMap::new(),
            ended: 0,
        };
        clock.read()?;
        Ok(clock)
    }

    fn read(&mut self) -> io::Result<u64> {
        let mut seen = HashMap::with_capacity(self.threads.len());
        for entry in fs::read_dir(&self.tasks)? {
            let entry = entry?;
            let Some(thread_id) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A thread may end between the listing and this read.
            let Ok(line) = fs::read_to_string(entry.path().join("schedstat")) else {
                continue;
            };
            seen.insert(thread_id, parse_schedstat(&line)?);
        }
        Ok(self.absorb(seen))
    }

    fn absorb(&mut self, seen: HashMap<u32, u64>) -> u64 {
        for (thread_id, used) in &self.threads {
            // A smaller figure means that the number was given to a new thread.
            if seen.get(thread_id).is_none_or(|now| now < used) {
                self.ended += used;
            }
        }
        self.threads = seen;
        self.ended + self.threads.values().sum::<u64>()
    }
}

/// The first field of a schedstat line: nanoseconds on a processor.
fn parse_schedstat(line: &str) -> io::Result<u64> {
    line.split_ascii_whitespace()
        .next()
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed schedstat"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn empty_clock() -> ProcessClock {
        ProcessClock { tasks: PathBuf::new(), threads: HashMap::new(), ended: 0 }
    }

    #[test]
    fn threads_come_and_go_without_time_running_backwards() {
        let mut clock = empty_clock();
        assert_eq!(clock.absorb(HashMap::from([(1, 100)])), 100);
        assert_eq!(clock.absorb(HashMap::from([(1, 150), (2, 30)])), 180);
        assert_eq!(clock.absorb(HashMap::from([(1, 160)])), 190);
        assert_eq!(clock.absorb(HashMap::from([(1, 160), (2, 5)])), 195);
        assert_eq!(clock.absorb(HashMap::from([(1, 2), (2, 5)])), 197);
    }

    #[test]
    fn schedstat_lines_parse() {
        assert_eq!(parse_schedstat("123456 789 10\n").unwrap(), 123_456);
        assert!(parse_schedstat("\n").is_err());
    }

    #[test]
    fn a_burning_thread_shows_up() {
        let mut clock = ServerClock::new(&[std::process::id()]).unwrap();
        let before = clock.read().unwrap();
        thread::spawn(|| {
            let end = own_cpu() + Duration::from_millis(30);
            let give_up = Instant::now() + Duration::from_secs(10);
            while own_cpu() < end && Instant::now() < give_up {}
            // Asleep, so that the reading below is exact, and alive, so that it is counted.
            thread::sleep(Duration::from_millis(300));
        });
        let give_up = Instant::now() + Duration::from_secs(10);
        while clock.read().unwrap() - before < 20_000_000 {
            assert!(Instant::now() < give_up, "the thread's time never showed up");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_process_that_does_not_exist_is_an_error() {
        assert!(ServerClock::new(&[std::process::id(), u32::MAX]).is_err());
    }
}
