"""Measures servers case by case, and holds idle connections."""

from __future__ import annotations

import resource
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from harness import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness import Server
    from run import Run


@dataclass(frozen=True)
class Case:
    """One measurement of a kind of servers."""

    # What tables call it.
    place: str
    connections: int
    # The work, in the words of the load client, unless it is an echo of so many bytes.
    options: Sequence[str]
    rounds: int
    burst_ms: int = 20
    size: int | None = None

    @classmethod
    def echo(cls, connections: int, size: int, rounds: int, burst_ms: int) -> Self:
        """Make that of an echo of `size` bytes."""
        unit = f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B"
        return cls(f"{connections:,} x {unit}", connections, (), rounds, burst_ms, size)


def measure(
    run: Run, kinds: Mapping[str, tuple[Callable[[], list[Server]], Sequence[Case]]]
) -> list[dict[str, Any]]:
    """Measure each case of each kind, with all servers of the kind alive.

    A case in which no server works is noted and left out.
    """
    total = sum(len(cases) for _, cases in kinds.values())
    done = 0
    found: list[dict[str, Any]] = []
    for kind, (servers, cases) in kinds.items():
        run.step(done, total, f"starting servers for {kind}")
        with run.alive(servers()) as here:
            for case in cases:
                run.step(done, total, f"{kind}, {case.place}")
                done += 1
                try:
                    results = run.visit(
                        here,
                        connections=case.connections,
                        size=case.size,
                        rounds=case.rounds,
                        burst_ms=case.burst_ms,
                        warmup_ms=run.pick(80, 40),
                        options=case.options,
                    )
                except BenchError as error:
                    run.failures[f"all, {kind}, {case.place}"] = str(error)
                    continue
                # One that failed would cost the client's patience each time, and might spin.
                for server in here:
                    if server.name not in results:
                        server.stop()
                here = [server for server in here if server.name in results]
                found.append(
                    {
                        "kind": kind,
                        "connections": case.connections,
                        "size": case.size,
                        "place": case.place,
                        "results": results,
                    }
                )
    if not found:
        raise BenchError("; ".join(run.failures.values()))
    return found


class Held:
    """Connections to a server that another client has opened, used once, and keeps idle."""

    def __init__(self, run: Run, server: Server, connections: int, *work: str) -> None:
        """Prepare `connections`; `work`, in the words of the client, is done once on each."""
        self._server = server
        self._command = [str(run.client.binary), "--hold", "--timeout-ms", "20000", *work]
        self._command += ["--target", server.target, "--connections", str(connections)]

    def __enter__(self) -> Self:
        """Open them; return when all are open."""
        self._client = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert self._client.stdout is not None
        if not self._client.stdout.readline().startswith("HOLDS"):
            _, errors = self._client.communicate()
            lines = errors.strip().splitlines() or ["no message"]
            raise BenchError(lines[0].removeprefix("kloop-load: "))
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self._client.communicate()


def allow_open_files() -> None:
    """Let this process, and those that it starts, have as many open files as they may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
