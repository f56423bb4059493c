"""An asyncio runtime on io_uring: one event loop in Rust, or one on every core."""

from kloop._worker import Core, current_core
from kloop.loop import Loop, new_event_loop, run
from kloop.percore import WorkerError, serve_per_core
from kloop.sqpoll import SqPoll
from kloop.streams import open_connection, open_unix_connection, start_server, start_unix_server

__all__ = [
    "Core",
    "Loop",
    "SqPoll",
    "WorkerError",
    "current_core",
    "new_event_loop",
    "open_connection",
    "open_unix_connection",
    "run",
    "serve_per_core",
    "start_server",
    "start_unix_server",
]
