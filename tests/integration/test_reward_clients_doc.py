"""The Python of README and docs/reward_clients.md runs, against a stand-in of the service on the documented port."""

import asyncio
import re
import subprocess
import sys

import pytest

from tests.support.fake_text_reward import FakeTextReward
from tests.support.paths import ROOT

PAGES = (ROOT / "README.md", ROOT / "docs/reward_clients.md")
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
async def test_a_block_of_python_runs(block: str):
    async with FakeTextReward() as service:
        script = block.replace("localhost:50052", service.target)
        result = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
        )
    assert result.returncode == 0, result.stderr
