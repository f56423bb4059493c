"""An asyncio runtime on io_uring: one loop in Rust, or one on every core."""

from kloop.loop import Loop, new_event_loop, run

__all__ = ["Loop", "new_event_loop", "run"]
