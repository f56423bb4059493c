//! Write flow control: high and low water marks, as asyncio's transports have them.

use super::base::{Transport, owner};
use super::lifecycle::Lifecycle;
use crate::event_loop::EventLoop;
use crate::py::{Args, Exc, Obj, Ref, Result, Signature, ToObj};

/// asyncio's default high-water mark, in bytes; the low-water mark is a quarter of the high one.
pub(super) const HIGH_WATER: usize = 64 * 1024;

const SET_LIMITS: Signature<2> = Signature {
    function: "set_write_buffer_limits",
    names: ["high", "low"],
    required: 0,
    positional: 2,
};

pub(super) trait FlowControl: Transport {
    fn get_write_buffer_size(this: &Ref<Self>) -> Result<usize> {
        Self::send_held(this)?;
        Ok(this.unsent.get())
    }

    fn get_write_buffer_limits(this: &Ref<Self>) -> Result<Obj> {
        let gil = this.gil();
        let (low, high) = (this.low_water.get().to_obj(gil)?, this.high_water.get().to_obj(gil)?);
        Obj::tuple(gil, &[low, high])
    }

    /// Marks in bytes; `ValueError` unless high >= low >= 0.
    fn set_write_buffer_limits(this: &Ref<Self>, args: &Args) -> Result<()> {
        let [high, low] = args.bind(&SET_LIMITS)?;
        let mark = |value: Option<&Obj>| value.and_then(Obj::some).map(to_mark).transpose();
        let (high, low) = (mark(high)?, mark(low)?);
        let high = match (high, low) {
            (Some(high), _) => high,
            (None, Some(low)) => low.saturating_mul(4),
            (None, None) => HIGH_WATER as i64,
        };
        let low = low.unwrap_or(high.div_euclid(4));
        match (usize::try_from(high), usize::try_from(low)) {
            (Ok(high), Ok(low)) if high >= low => {
                this.high_water.set(high);
                this.low_water.set(low);
                Self::maybe_pause_protocol(this)
            }
            _ => Err(Exc::value_error(
                args.gil,
                format!("high ({high}) must be >= low ({low}) must be >= 0"),
            )),
        }
    }

    fn maybe_pause_protocol(this: &Ref<Self>) -> Result<()> {
        if this.unsent.get() <= this.high_water.get() || this.protocol_paused.replace(true) {
            return Ok(());
        }
        let name = &this.home.state.names.pause_writing;
        Self::tell_protocol(this, name, "protocol.pause_writing() failed")
    }

    fn maybe_resume_protocol(this: &Ref<Self>) -> Result<()> {
        if !this.protocol_paused.get() || this.unsent.get() > this.low_water.get() {
            return Ok(());
        }
        this.protocol_paused.set(false);
        let name = &this.home.state.names.resume_writing;
        Self::tell_protocol(this, name, "protocol.resume_writing() failed")
    }

    /// Waits for room to write; `on_written` hears of it.
    fn await_room(this: &Ref<Self>, error_message: &str) -> Result<()> {
        if this.write_op.get().is_some() {
            return Ok(());
        }
        let (fd, events, owner) = (this.fd.get(), libc::POLLOUT as u32, owner(this));
        match EventLoop::with_ring(&this.home, |driver| driver.poll(fd, events, false, owner)) {
            Ok(op) => {
                this.write_op.set(Some(op));
                Ok(())
            }
            Err(error) => Self::fatal_error(this, error, error_message),
        }
    }

    fn tell_protocol(this: &Ref<Self>, method: &Obj, message: &str) -> Result<()> {
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        match protocol.call_method(method, []) {
            Ok(_) => Ok(()),
            Err(error) if error.is_exit() => Err(error),
            Err(error) => Self::report(this, message, error.object()),
        }
    }

    fn get_protocol_paused(this: &Ref<Self>) -> Result<bool> {
        Ok(this.protocol_paused.get())
    }

    fn get_high_water(this: &Ref<Self>) -> Result<usize> {
        Ok(this.high_water.get())
    }

    fn get_low_water(this: &Ref<Self>) -> Result<usize> {
        Ok(this.low_water.get())
    }
}

impl<T: Transport> FlowControl for T {}

/// A number of bytes, as a number of any kind and size.
fn to_mark(value: &Obj) -> Result<i64> {
    if let Ok(mark) = value.to_i64() {
        return Ok(mark);
    }
    let number = value.to_f64()?;
    if !number.is_finite() {
        return Err(Exc::value_error(value.gil(), format!("{number} is no number of bytes")));
    }
    Ok(number as i64)
}
