//! Which kernel interface a driver is to use.

use std::str::FromStr;

/// What [`Driver::new`](super::Driver::new) is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// io_uring, and epoll where that cannot be set up.
    #[default]
    Auto,
    Uring,
    Epoll,
}

impl Choice {
    pub const NAMES: [(&'static str, Choice); 3] =
        [("auto", Choice::Auto), ("uring", Choice::Uring), ("epoll", Choice::Epoll)];
}

impl FromStr for Choice {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice).ok_or(())
    }
}
