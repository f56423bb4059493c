"""Measure how `kloop.serve_per_core` scales over cores, with a CPU-bound handler.

Each request costs about 300 us of pure Python, the same amount of work at any number of
cores, so that the servers and not the load client are the limit. One server process for
each number of cores is alive, and the load client visits them in turn, in reverse order
every other round. Measured: requests per second, and its ratio to the first number of
cores, round by round. Nothing is pinned but what kloop pins itself, and the client
sleeps while it waits, for the servers may want every CPU. The client takes its share of
them: with as many cores as CPUs, the ideal ratio is out of reach by that much. So does
whatever else runs: "CPUs used", the server's processor time over the wall clock, says how
many CPUs a server really had. A ratio means something where that is close to the cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
from harness import BenchError, LoadClient, LoadResult, Server, Spread

REQUEST_BYTES = 64
SERVER = "cpu_bound.py"

HEADS = (
    ">cores",
    ">requests/s",
    ">ratio (quartiles)",
    ">server CPU us/request",
    ">CPUs used",
    ">p50 us",
    ">p99 us",
    ">errors",
    "connections per core",
    "share of requests per core",
)


def main() -> int:
    """Run the comparison and print it."""
    settings = _parse()
    harness.end_on_signals()
    if reason := harness.missing("kloop"):
        raise BenchError(f"kloop: {reason}")
    facts = harness.environment()
    if max(settings.cores) > facts["cpus"]:
        raise BenchError(f"{max(settings.cores)} cores on {facts['cpus']} CPUs")
    connections = settings.connections or max(16, 8 * max(settings.cores))
    client = LoadClient()
    amount = _calibrate(settings.work_us)
    # The workers import the handler by name.
    path = os.pathsep.join(filter(None, [str(harness.SERVERS), os.environ.get("PYTHONPATH")]))
    environment = {"KLOOP_BENCH_WORK": str(amount), "PYTHONPATH": path}

    print(f"{harness.describe_environment(facts)}.\n", flush=True)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                Server(
                    f"{cores} cores",
                    SERVER,
                    *("--cores", str(cores)),
                    environment=environment,
                )
            )
            for cores in settings.cores
        ]
        results = client.run(
            servers,
            connections=connections,
            size=REQUEST_BYTES,
            rounds=settings.rounds,
            burst_ms=settings.burst_ms,
            warmup_ms=settings.warmup_ms,
            sleep=True,
        )
    # The servers have stopped: all that they had to say is there.
    lines = [
        _line(cores, result, results[0], server.lines)
        for cores, result, server in zip(settings.cores, results, servers, strict=True)
    ]
    print(harness.table_head(HEADS))
    for line in lines:
        print(harness.table_row(_row(line)))
    client_share = sum(
        result["client_cpu_us_per_request"] * result["requests"] for result in results
    ) / sum(result["seconds"] * 1e6 for result in results)
    print(
        f"\nWork of {settings.work_us:.0f} us of pure Python per request "
        f"({amount} steps), {connections} connections, {settings.rounds} rounds of "
        f"{settings.burst_ms} ms. Requests/s: median over the rounds. Ratio: to "
        f"{settings.cores[0]} core(s), round by round, median and quartiles. The client "
        f"used {client_share:.0%} of one CPU."
    )
    content = {
        "environment": facts,
        "settings": {**vars(settings), "json": None, "connections": connections},
        "work": amount,
        "lines": lines,
    }
    harness.write_json(settings.json, content)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", type=harness.numbers, default=[1, 2])
    parser.add_argument("--connections", type=int, help="default: 8 per core, and 16 at least")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--burst-ms", type=int, default=1000)
    parser.add_argument("--warmup-ms", type=int, default=500)
    parser.add_argument("--work-us", type=float, default=300.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def _calibrate(microseconds: float) -> int:
    """Find how much work takes `microseconds`, in a process like the servers."""
    script = str(harness.SERVERS / SERVER)
    command = [sys.executable, script, "--calibrate", str(microseconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError("the work per request cannot be calibrated")
    return int(done.stdout.removeprefix("WORK "))


def _line(cores: int, result: LoadResult, base: LoadResult, said: list[str]) -> dict[str, Any]:
    connections = [0] * cores
    requests = [0] * cores
    for text in said:
        word, *fields = text.split()
        if word == "SERVED":
            core, served = map(int, fields)
            connections[core] += 1
            requests[core] += served
    ratios = harness.ratios(harness.rates(result), harness.rates(base))
    return {
        "cores": cores,
        "requests_per_second": asdict(Spread.of(harness.rates(result))),
        "ratio": asdict(Spread.of(ratios)),
        "ratio_by_round": ratios,
        "connections_by_core": connections,
        "requests_by_core": requests,
        "load": result,
    }


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    load: LoadResult = line["load"]
    total = max(1, sum(line["requests_by_core"]))
    return (
        str(line["cores"]),
        f"{line['requests_per_second']['median']:,.0f}",
        f"{Spread(**line['ratio']):.2f}",
        f"{Spread.of(harness.cpu_per_request(load)).median:.0f}",
        f"{Spread.of(harness.cpus_used(load)).median:.2f}",
        f"{load['latency_us']['p50']:.0f}",
        f"{load['latency_us']['p99']:.0f}",
        str(load["errors"]),
        " ".join(map(str, line["connections_by_core"])),
        " ".join(f"{served / total:.0%}" for served in line["requests_by_core"]),
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"cores.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
