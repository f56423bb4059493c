"""granian with the ASGI application of hello.py: WORKERS LOOP [CPU].

Each worker says LISTENS when it is there.
"""

from __future__ import annotations

import os
import socket
import sys

from granian import Granian

HOST = "127.0.0.1"


def main(workers: str, loop: str, cpu: str = "") -> None:
    """Serve until a signal ends it."""
    if cpu:
        os.sched_setaffinity(0, {int(cpu)})
    # granian takes no port 0.
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    os.environ["KLOOP_BENCH_ADDRESS"] = f"{HOST}:{port}"
    Granian(
        "hello:app",
        address=HOST,
        port=port,
        interface="asgi",  # type: ignore[arg-type]
        workers=int(workers),
        loop=loop,  # type: ignore[arg-type]
        log_enabled=False,
    ).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
