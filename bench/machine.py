"""Where and with what a run was taken."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import contenders
import harness

ROOT = harness.BENCH.parent
PACKAGES = ("uvicorn", "httptools", "aiohttp", "granian")


def facts(loops: list[str]) -> dict[str, Any]:
    """Describe this machine and the versions of `loops` and of the servers on them."""
    versions = {name: contenders.version(name) for name in (*loops, *PACKAGES)}
    versions["kloop"] = _kloop_version()
    versions.pop("asyncio", None)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "build": f"{sys.implementation.name}, {platform.python_compiler()}",
        "kernel": platform.release(),
        "processor": _processor(),
        "cpus": len(harness.cpus()),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": os.getloadavg()[0],
        "versions": {name: version for name, version in versions.items() if version},
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found[1]
    return platform.machine()


def _kloop_version() -> str:
    manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.*)"$', manifest, re.M)
    version = found[1] if found else "unknown"
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{version} ({done.stdout.strip()})" if done.returncode == 0 else version
