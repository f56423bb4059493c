"""Echo on every core, with counters: the server of demo.py.

State needs no lock: a module's globals exist once per core, for each core has its own interpreter.
A client that sends STATS gets the counters of its connection's core as one line of JSON.
"""

import argparse
import asyncio
import dataclasses
import json
from typing import Any

import kloop

STATS = b"stats\n"

connections = 0
echoed_bytes = 0


class CountingEcho(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        global connections
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        connections += 1

    def data_received(self, data: bytes) -> None:
        global connections, echoed_bytes
        if data == STATS:
            connections -= 1  # one that asks does not count
            self.transport.write(counters())
        else:
            echoed_bytes += len(data)
            self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


def counters() -> bytes:
    core = kloop.current_core()
    line = {**dataclasses.asdict(core), "connections": connections, "echoed_bytes": echoed_bytes}
    return json.dumps(line).encode() + b"\n"


def ready(addresses: list[Any]) -> None:
    print("ready on", *(f"{address[0]}:{address[1]}" for address in addresses), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="echo with counters, on every core")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--cores", type=int, help="default: all that this process may use")
    options = parser.parse_args()
    kloop.serve_per_core(
        CountingEcho, options.host, options.port, cores=options.cores, on_ready=ready
    )


if __name__ == "__main__":
    main()
