"""The Python of docs/reward_clients.md runs as it stands, against a service on the documented port's stand-in."""

import asyncio
import re
import subprocess
import sys

import pytest

from tests.support.fake_text_reward import FakeTextReward
from tests.support.paths import ROOT

DOC = ROOT / "docs/reward_clients.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
async def test_a_block_of_python_runs(block: str):
    async with FakeTextReward() as service:
        script = block.replace("localhost:50052", service.target)
        result = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
        )
    assert result.returncode == 0, result.stderr
