"""Runs the tests of a module of test.test_asyncio in child processes."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

CHILD = Path(__file__).with_name("child.py")
START_LIMIT = 120.0
"""Seconds that a child may take to import its module, and to end."""

Choose = Callable[[list[str]], Iterable[str]]


@dataclass
class Result:
    outcome: str
    """"passed", "skipped" or "failed"."""
    detail: str = ""
    complaints: list[tuple[str, str]] = field(default_factory=list)
    """What was left behind or reported during the test: kind and text."""
    on_kloop: bool = False

    @property
    def clean(self) -> bool:
        return self.outcome == "passed" and not self.complaints

    def is_worse_than(self, other: "Result") -> bool:
        """Whether this fails, or is skipped, or complains more than the other."""
        if self.outcome != "passed":
            return self.outcome != other.outcome
        mine, others = (Counter(kind for kind, _ in result.complaints) for result in (self, other))
        return not mine <= others

    def __str__(self) -> str:
        return "\n".join([self.detail.rstrip(), *map(": ".join, self.complaints)]).strip()


class Ended(Exception):
    """A child ended, or had to be ended, before it was done."""


class Child:
    """A process that runs tests of one module on one loop."""

    def __init__(self, process: asyncio.subprocess.Process, stderr: IO[str]) -> None:
        self.process = process
        self.stderr = stderr

    @staticmethod
    @contextlib.asynccontextmanager
    async def start(module: str, loop: str, time_limit: float) -> AsyncIterator["Child"]:
        with (
            tempfile.TemporaryDirectory(prefix="conformance-") as folder,
            tempfile.TemporaryFile("w+", errors="replace") as stderr,
        ):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, CHILD, module, str(time_limit)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                env=os.environ | {"CONFORMANCE_LOOP": loop},
                start_new_session=True,
                limit=1 << 24,
            )
            try:
                yield Child(process, stderr)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what its tests have left
                await process.wait()

    async def read(self, time_limit: float) -> Any:
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(time_limit):
                line = await self.process.stdout.readline()
                if line:
                    return json.loads(line)
                status = await self.process.wait()
        except TimeoutError:
            raise Ended(self.report("it hangs")) from None
        raise Ended(self.report(f"its process ended with status {status}"))

    def write(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def end(self) -> None:
        try:
            status = await asyncio.wait_for(self.process.wait(), START_LIMIT)
        except TimeoutError:
            raise Ended(self.report("the process does not end")) from None
        if status != 0:
            raise Ended(self.report(f"the process ended with status {status}"))

    def report(self, what: str) -> str:
        self.stderr.seek(0)
        return f"{self.stderr.read()[-8000:]}\n{what}"


async def run(module: str, loop: str, choose: Choose, time_limit: float) -> dict[str, Result]:
    """Run what choose() picks of the names of all tests. The results, by name.

    time_limit is in seconds, for each test. A test that hangs or ends its process is charged with
    that, and a new process goes on with the others.
    """
    results: dict[str, Result] = {}
    left: list[str] | None = None
    while left is None or left:
        charged = "process"
        try:
            async with Child.start(module, loop, time_limit) as child:
                names = await child.read(START_LIMIT)
                left = list(choose(names)) if left is None else left
                child.write(left)
                while left:
                    charged = await child.read(START_LIMIT)
                    result = await child.read(time_limit + 10)
                    results[charged] = Result(*result)
                    left.remove(charged)
                    charged = "process"
                await child.end()
        except Ended as ended:
            results[charged] = Result("failed", str(ended))
            if left is None or charged == "process":
                break
            left.remove(charged)
    return results
