"""An echo server on kloop with and without a kernel thread that submits: MODE CPU.

MODE is `off` or `on`. The loop's thread stays on the CPU; the kernel's thread finds its own among
the others that the process may use.
"""

from __future__ import annotations

import os
import sys
import threading

import serving
from echo_protocol import Echo

import kloop


def serve(mode: str, cpu: int) -> None:
    """Serve until the process is ended."""
    os.sched_setaffinity(0, {cpu})
    loop = kloop.new_event_loop(sqpoll=mode == "on")
    server = loop.run_until_complete(loop.create_server(Echo, serving.HOST, 0))
    print(f"SQPOLL {loop.sqpoll.reason}", flush=True)
    serving.announce(f"{serving.HOST}:{server.sockets[0].getsockname()[1]}")
    loop.run_forever()


if __name__ == "__main__":
    serving.end_with_parent()
    # Of all threads, only the loop's stays on its CPU.
    thread = threading.Thread(target=serve, args=(sys.argv[1], int(sys.argv[2])))
    thread.start()
    thread.join()
