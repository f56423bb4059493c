"""Reads waivers.toml."""

import sys
import tomllib
from pathlib import Path


class Waivers:
    """What does not count on the running version of Python. Tests are as "module.Class.test"."""

    def __init__(self, path: Path) -> None:
        content = tomllib.loads(path.read_text())
        version = "{}.{}".format(*sys.version_info)
        self._excluded: dict[str, str] = content["excluded"]
        self.waived: dict[str, str] = content["waived"]["all"] | content["waived"].get(version, {})

    def excluded(self, test: str) -> str | None:
        """Why a test, its class or its module is not to be run."""
        name = test
        while name:
            if reason := self._excluded.get(name):
                return reason
            name = name.rpartition(".")[0]
        return None
