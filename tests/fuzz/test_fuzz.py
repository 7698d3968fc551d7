"""The fuzz targets, each for a while: none may find an input that is not answered as it should be."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SECONDS = 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", ["fuzz_grpc.py", "fuzz_json.py"])
def test_a_fuzz_target_finds_nothing(target: str, tmp_path: Path):
    command = [sys.executable, str(FOLDER / target), f"-max_total_time={SECONDS}", "-timeout=10"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "DONE" in result.stderr
