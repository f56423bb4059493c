"""`kloop.serve_per_core` with a handler that spends its time in pure Python.

Each request of `REQUEST_BYTES` bytes costs a fixed amount of work and is echoed. The
amount comes from the environment variable `KLOOP_BENCH_WORK`, so that the workers of
all cores, and all servers of a comparison, do the same. `--calibrate US` prints the
amount that takes US microseconds here, as `WORK <n>`.

For each connection a line is printed at its end: `SERVED <core> <requests>`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import serving

import kloop

if TYPE_CHECKING:
    import asyncio

REQUEST_BYTES = 64
WORK = int(os.environ.get("KLOOP_BENCH_WORK", "5000"))


def work(amount: int) -> int:
    """Keep the interpreter busy; the time taken is proportional to `amount`."""
    total = 0
    for number in range(amount):
        total += number * number % 7
    return total


def calibrate(microseconds: float) -> int:
    """Find the amount of work that takes `microseconds` of processor time."""
    probe = 2000
    times = []
    for _ in range(1000):
        start = time.thread_time_ns()
        work(probe)
        times.append(time.thread_time_ns() - start)
    return max(1, round(probe * microseconds * 1000 / statistics.median(times)))


async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    served = 0
    try:
        while request := await reader.read(REQUEST_BYTES):
            while len(request) < REQUEST_BYTES:
                request += await reader.readexactly(REQUEST_BYTES - len(request))
            work(WORK)
            writer.write(request)
            await writer.drain()
            served += 1
    except (ConnectionError, EOFError):
        pass
    finally:
        writer.close()
        # One write for the line: other cores write to the same pipe.
        line = f"SERVED {kloop.current_core().index} {served}\n"
        os.write(1, line.encode())


def listens(addresses: list[Any]) -> None:
    """Announce the address; called when all cores are ready."""
    serving.announce(f"{serving.HOST}:{addresses[0][1]}")


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--calibrate", type=float, metavar="US")
    arguments = parser.parse_args()
    if arguments.calibrate is not None:
        print(f"WORK {calibrate(arguments.calibrate)}")
        return
    serving.end_with_parent()
    kloop.serve_per_core(
        "cpu_bound:handler",
        serving.HOST,
        0,
        cores=arguments.cores,
        on_ready=listens,
    )


if __name__ == "__main__":
    main()
