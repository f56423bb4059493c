"""What the processes of a server hold in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Memory:
    """Bytes that some processes hold."""

    # All that is resident, what processes share counted for each of them.
    rss: int
    # What processes share counted in parts, also what they share with processes of others.
    pss: int
    # What belongs to no file: heaps and stacks.
    anonymous: int
    # Anonymous memory, and what the process with most of it holds of files: the processes of one
    # server map the same programs and libraries, which are in memory once.
    together: int


def read(pids: Iterable[int]) -> Memory:
    """Read what the processes `pids` hold now."""
    each = [_read(pid) for pid in pids]
    anonymous = sum(fields["Anonymous"] for fields in each)
    return Memory(
        rss=sum(fields["Rss"] for fields in each),
        pss=sum(fields["Pss"] for fields in each),
        anonymous=anonymous,
        together=anonymous + max(fields["Rss"] - fields["Anonymous"] for fields in each),
    )


def _read(pid: int) -> dict[str, int]:
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount, *_ = line.split()
        fields[name.removesuffix(":")] = int(amount) * 1024
    return fields


def family(pid: int) -> list[int]:
    """List a process and all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The command's name, in brackets, may hold anything.
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            parents[int(entry.name)] = int(after_name[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found
