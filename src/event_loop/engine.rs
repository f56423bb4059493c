//! How transports use the ring: with a poller they receive and send through it, so that a busy loop
//! makes no system call.

use super::EventLoop;
use super::choose::open_driver;
use crate::driver::{Choice, Config, Poller};
use crate::py::{Args, Exc, Obj, Ref, Result, Signature};

const OPEN_RING: Signature<3> = Signature {
    function: "_open_ring",
    names: ["idle", "cpu", "receive"],
    required: 0,
    positional: 0,
};

impl EventLoop {
    /// Replaces the ring of a loop that was not used yet. `idle`: have a poller submit, which
    /// sleeps after so many milliseconds without work; `cpu`: where it runs, by default on any; `receive`:
    /// have stream transports receive through the ring, as they do with a poller. Without effect
    /// where the kernel cannot.
    ///
    /// `OSError`, with cause and remedy, where there can be no such ring.
    pub(super) fn open_ring(this: &Ref<EventLoop>, args: &Args) -> Result<()> {
        let [idle, cpu, receive] = args.bind(&OPEN_RING)?;
        let number = |value: Option<&Obj>| value.and_then(Obj::some).map(Obj::to_i32).transpose();
        let (idle, cpu) = (number(idle)?, number(cpu)?);
        let poller = idle.map(|idle| Poller { idle: idle as u32, cpu: cpu.map(|cpu| cpu as u32) });
        let receive = receive.map(Obj::truth).transpose()?.unwrap_or(false) || poller.is_some();
        let config = Config { receive, poller, ..Config::default() };
        let choice = if poller.is_some() { Choice::Uring } else { this.choice };
        let driver = open_driver(args.gil, choice, &config)?;
        if Self::with_driver(this, |driver| driver.in_flight())? > 0 {
            return Err(Exc::runtime_error(args.gil, "the loop is in use"));
        }
        this.config.set(config);
        this.receives.set(driver.receives());
        this.sends.set(poller.is_some());
        this.driver_name.set(driver.name());
        this.waker.replace(Some(driver.waker()));
        let old = this.driver.replace(Some(driver));
        drop(old);
        Ok(())
    }

    /// Whether stream transports receive through the ring.
    #[inline]
    pub fn receives(&self) -> bool {
        self.receives.get()
    }

    /// Whether stream transports send through the ring.
    #[inline]
    pub fn sends(&self) -> bool {
        self.sends.get()
    }
}
