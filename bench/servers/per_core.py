"""`kloop.serve_per_core` with the greeting of hello.py: CORES [threads|processes]."""

from __future__ import annotations

import sys

import kloop

HOST = "127.0.0.1"

if __name__ == "__main__":
    # No argument parser: what a server imports is in its memory, which is compared.
    cores, workers = sys.argv[1:]
    kloop.serve_per_core(
        "hello:Hello",
        HOST,
        0,
        cores=int(cores),
        workers=workers,  # type: ignore[arg-type]
        on_ready=lambda addresses: print(f"LISTENS {HOST}:{addresses[0][1]}", flush=True),
    )
