//! How many files this process may have open.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are no connections: standard streams, epoll instances, files read in passing.
const SPARE: u64 = 100;

/// Allows this process `connections` and what it needs besides; an error says what is too low.
pub fn allow_connections(connections: usize) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let needed = connections as u64 + SPARE;
    if limit.current.is_none_or(|current| needed <= current) {
        return Ok(());
    }
    if let Some(maximum) = limit.maximum.filter(|&maximum| maximum < needed) {
        let message = format!("{needed} open files are needed and {maximum} allowed (ulimit -Hn)");
        return Err(io::Error::other(message));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_hard_limit_is_refused_in_words() {
        if getrlimit(Resource::Nofile).maximum.is_none() {
            return; // nothing is too much here
        }
        let refusal = allow_connections(usize::MAX / 2).unwrap_err().to_string();
        assert!(refusal.contains("open files are needed"), "{refusal}");
    }

    #[test]
    fn what_the_hard_limit_allows_is_had() {
        let wanted = match getrlimit(Resource::Nofile).maximum {
            Some(maximum) => maximum.saturating_sub(SPARE),
            None => 100_000,
        };
        allow_connections(wanted as usize).unwrap();
        assert!(getrlimit(Resource::Nofile).current.is_none_or(|now| now >= wanted));
    }
}
