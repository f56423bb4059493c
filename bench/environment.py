"""Make the suite's own environment, bench/.venv, with the peers that install here.

Run by the interpreter of the repository's .venv, whose kloop is used as it is built. Each
package of requirements.txt is installed by itself; why one was left out is kept for the
report.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

from contenders import LEFT_OUT

BENCH = Path(__file__).resolve().parent
FOLDER = BENCH / ".venv"
PYTHON = FOLDER / "bin" / "python"
REQUIREMENTS = BENCH / "requirements.txt"

NEEDED = ("matplotlib",)


def main() -> int:
    """Do what is not done yet."""
    stamp = FOLDER / ".made-of"
    wanted = f"{sys.version}\n{REQUIREMENTS.read_text(encoding='utf-8')}"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return 0
    print("== bench/.venv, with the peers that install", flush=True)
    venv.create(FOLDER, clear=True, symlinks=True, with_pip=True)
    # kloop itself, as an editable install would have it.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = FOLDER / "lib" / version / "site-packages"
    (packages / "kloop.pth").write_text(f"{BENCH.parent / 'python'}\n", encoding="utf-8")
    left_out = {}
    for line in wanted.splitlines()[1:]:
        requirement = line.partition("#")[0].strip()
        if not requirement or "==" not in requirement:
            continue
        if reason := _install(requirement):
            name = requirement.partition("==")[0]
            print(f"{requirement} is left out: {reason}", file=sys.stderr, flush=True)
            if name in NEEDED:
                return 1
            left_out[name] = reason
    (FOLDER / LEFT_OUT).write_text(json.dumps(left_out), encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")
    return 0


def _install(requirement: str) -> str | None:
    """Install it; why that was not possible, or None."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    found = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {done.returncode}"
    return f"does not install: {found}"


if __name__ == "__main__":
    sys.exit(main())
