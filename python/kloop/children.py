"""Waiting for child processes, without signals: in any thread and in workers' interpreters."""

import os
import subprocess
import threading
from asyncio.log import logger
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kloop.loop import Loop


class ChildWatcher:
    """Tells asyncio's subprocess transports of one loop when their processes end.

    The loop polls a pidfd, pidfd_open(2). Where there is none to be had (an old kernel, a seccomp
    filter, no descriptor left), a thread waits instead.
    """

    def __init__(self) -> None:
        self._pidfds: set[int] = set()

    def watch(self, loop: "Loop", transport: Any) -> None:
        """Call transport._process_exited() when its process has ended."""
        try:
            pidfd = os.pidfd_open(transport.get_pid())
        except (AttributeError, OSError):
            self._wait_in_thread(loop, transport)
            return
        try:
            loop._add_reader(pidfd, self._on_exit, loop, transport, pidfd)
        except BaseException:
            os.close(pidfd)
            raise
        self._pidfds.add(pidfd)

    def give_up(self, transport: Any) -> None:
        """Kill a process that cannot be watched, and close its transport."""
        transport.close()
        transport._process_exited(_reap(transport._proc))

    def close(self) -> None:
        """Forget the processes that still run. The loop must be closed."""
        while self._pidfds:
            os.close(self._pidfds.pop())

    def _on_exit(self, loop: "Loop", transport: Any, pidfd: int) -> None:
        loop._remove_reader(pidfd)
        self._pidfds.remove(pidfd)
        os.close(pidfd)
        transport._process_exited(_reap(transport._proc))

    def _wait_in_thread(self, loop: "Loop", transport: Any) -> None:
        process: subprocess.Popen[bytes] = transport._proc

        def exited() -> None:
            transport._process_exited(_reap(process))

        def wait() -> None:
            try:
                # The loop's thread takes the status, so that until then the id stays valid there.
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                pass
            try:
                loop.call_soon_threadsafe(exited)
            except RuntimeError:  # the loop is closed
                _reap(process)

        name = f"kloop-wait-{process.pid}"
        try:
            thread = threading.Thread(target=wait, name=name, daemon=True)
        except RuntimeError:  # a worker's interpreter allows no daemon threads
            thread = threading.Thread(target=wait, name=name)
        thread.start()


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Take the status of an ended process, and return its returncode."""
    if process.returncode is not None:  # somebody has asked the Popen object
        return process.returncode
    try:
        _, status = os.waitpid(process.pid, 0)
    except ChildProcessError:
        logger.warning(
            "child process pid %d exit status already read: will report returncode 255",
            process.pid,
        )
        return 255
    return os.waitstatus_to_exitcode(status)
