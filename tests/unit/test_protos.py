"""The contracts: their stubs are in step, their style is clean, and they break nobody."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.support.paths import ROOT

PROTOS = ROOT / "protos"
BUF = Path(sys.executable).with_name("buf")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_committed_stubs_are_what_the_pinned_tool_makes_of_the_protos(tmp_path):
    assert version("grpcio-tools") == "1.78.0", "another version writes other bytes: pip install grpcio-tools==1.78.0"
    sources = sorted(PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    result = run(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *sources)
    assert result.returncode == 0, result.stderr
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*.py*")}
    committed = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "rlhf").rglob("*_pb2*.py*")}
    assert made.keys() == committed.keys(), "run make protos"
    assert [path for path in made if made[path] != committed[path]] == [], "run make protos"


def test_buf_finds_nothing_to_say_about_style_comments_and_format():
    for arguments in (["lint"], ["format", "--diff", "--exit-code"]):
        result = run(BUF, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr


def test_nothing_breaks_the_contracts_of_the_last_release():
    """Before the first release, the last commit takes its place."""
    tag = run("git", "describe", "--tags", "--abbrev=0").stdout.strip()
    result = run(BUF, "breaking", "--against", f".git#tag={tag}" if tag else ".git#ref=HEAD")
    assert result.returncode == 0, result.stdout + result.stderr
