"""The benchmark suite's modules, which live in a folder of scripts."""

import sys
from pathlib import Path

# Last, so that no module of the suite hides another.
sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
