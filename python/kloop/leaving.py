"""How a process ends on CPython 3.13, where worker interpreters cannot be ended.

Ending several of them can crash CPython 3.13 (python/cpython#136423), and so can ending the main
interpreter before them. So the last exit handler leaves by os._exit, with the status that the
program would have had.
"""

import atexit
import os
import signal
import sys
import threading
import types
from typing import NoReturn

__all__ = ["INTERPRETERS_CAN_END", "exit_now", "leave_interpreters_alone"]

INTERPRETERS_CAN_END = sys.version_info >= (3, 14)

_leaving = False
_exit: SystemExit | None = None


def leave_interpreters_alone() -> None:
    """End the process, when its time comes, without ending the workers' interpreters."""
    atexit.unregister(_leave)
    atexit.register(_leave)
    watch_for_exit()


def watch_for_exit() -> None:
    """Keep the SystemExit that ends the program: no exit handler can ask CPython for it.

    Where all of sys.monitoring's tools are taken, a status that is not 0 is lost.
    """
    monitoring, unwinding = sys.monitoring, sys.monitoring.events.PY_UNWIND
    tools = [number for number in range(6) if monitoring.get_tool(number) in (None, "kloop")]
    if tools and monitoring.get_tool(tools[-1]) is None:
        monitoring.use_tool_id(tools[-1], "kloop")
        monitoring.register_callback(tools[-1], unwinding, _note_exit)
        monitoring.set_events(tools[-1], unwinding)


def _note_exit(code: types.CodeType, offset: int, error: BaseException) -> None:
    global _exit
    if (
        isinstance(error, SystemExit)
        and sys._getframe(1).f_back is None  # it leaves the outermost frame
        and threading.current_thread() is threading.main_thread()
    ):
        _exit = error


class _RegisteredLater:
    """Equal to the exit handlers registered after _leave(), of which CPython 3.13 keeps a list in
    that order and asks each whether it is the one to unregister."""

    passed = False
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, handler: object) -> bool:
        if handler is _leave:
            self.passed = True
            return False
        return self.passed


def _leave() -> None:
    global _leaving
    if _leaving:
        return
    _leaving = True
    threading._shutdown()  # type: ignore[attr-defined]
    atexit.unregister(_RegisteredLater())  # type: ignore[arg-type]  # they have run already
    atexit._run_exitfuncs()
    error = _exit or getattr(sys, "last_exc", None)
    if isinstance(error, KeyboardInterrupt):
        flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        exit_now((error.code or 0) & 0xFF)
    exit_now(0 if error is None else 1)


def exit_now(status: int) -> NoReturn:
    """End the process without any more ado than writing out what was printed."""
    flush()
    os._exit(status)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # closed, or gone with a pipe
