"""The loops that are compared, and how each is run at its best."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

KLOOP = "kloop"
AGAIN = "kloop again"
FLOOR = "floor"
LOOPS = ("kloop", "asyncio", "uvloop", "rloop", "rsloop", "zuvloop", "zloop")

# In the folder of the virtual environment.
LEFT_OUT = "left-out.json"

# Some loops allocate their largest read for each read, and asyncio's StreamReader copies as much.
# glibc may fetch that from the kernel and return it each time, at several times the cost of an
# echo, depending on the state of the heap. With these limits raised it does not. All get them.
CALM_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
}


@dataclass(frozen=True)
class Contender:
    """A line of a comparison: a loop, or kloop once more."""

    # What tables call it, and the module whose new_event_loop() makes the loop.
    name: str
    loop: str
    environment: Mapping[str, str] = field(default_factory=lambda: CALM_MALLOC)


def find(loops: tuple[str, ...] = LOOPS) -> tuple[list[Contender], dict[str, str]]:
    """List those of `loops` that run here, kloop's second copy last; and why others do not."""
    here, left_out = [], {}
    for loop in loops:
        if reason := missing(loop):
            left_out[loop] = reason
        else:
            here.append(Contender(loop, loop))
    if any(each.loop == KLOOP for each in here):
        here.append(Contender(AGAIN, KLOOP))
    return here, left_out


def missing(module: str) -> str | None:
    """Why a loop of `module` cannot run, or None if it can."""
    script = (
        "import asyncio, importlib\n"
        f"loop = importlib.import_module({module!r}).new_event_loop()\n"
        "loop.run_until_complete(asyncio.sleep(0))\n"
        "loop.close()"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=30,
        )
    except subprocess.TimeoutExpired:
        return "its loop hangs"
    if done.returncode == 0:
        return None
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if reason == f"ModuleNotFoundError: No module named '{module}'":
        return "not installed"
    return f"does not run ({reason})"


def version(distribution: str) -> str | None:
    """The installed version, if there is one."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def not_installed() -> dict[str, str]:
    """Why a package of requirements.txt is not there, as environment.py found."""
    try:
        notes: dict[str, str] = json.loads((Path(sys.prefix) / LEFT_OUT).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return notes
