"""The rooms of the house and who may use whom (docs/architecture.md): no import upward, no circle anywhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.house import House, circles, imports_upward
from tests.support.paths import ROOT

HOUSE = House(ROOT)


def test_no_import_runs_upward():
    upward = imports_upward(HOUSE)
    print(f"imports upward: {len(upward)}")
    assert not upward


@pytest.mark.parametrize("what", ["files", "rooms"])
def test_nothing_imports_itself_in_a_circle(what: str):
    found = circles(HOUSE.files if what == "files" else HOUSE.rooms)
    print(f"circles among {what}: {len(found)}")
    assert not found


def test_an_import_that_is_planted_upward_is_found(tmp_path: Path):
    for name, text in {
        "rlhf/models/loading.py": "from rlhf.learning.ppo import Ppo\n",
        "rlhf/learning/ppo.py": "from rlhf.models.loading import load_policy\n",
        "rlhf/client/__init__.py": "from rlhf.client.reward import RewardClient\n",
        "rlhf/client/reward.py": "from rlhf.serving.probe import ask_health\n",
        "rlhf/client/base.py": "from . import RewardClient\n",
        "rlhf/data/records.py": "from rlhf.client import RewardClient\n",
        "rlhf/algorithms/kl.py": "from rlhf.errors import ConfigError\n",
        "rlhf/errors.py": "",
        "rlhf/serving/probe.py": "",
        "services/policy/server.py": "from services.reward.server import main\n",
        "services/reward/server.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    house = House(tmp_path)
    assert imports_upward(house) == [
        "rlhf/algorithms/kl.py imports rlhf.errors",
        "rlhf/client/reward.py imports rlhf.serving.probe",
        "rlhf/data/records.py imports rlhf.client.__init__",
        "rlhf/models/loading.py imports rlhf.learning.ppo",
        "services/policy/server.py imports services.reward.server",
    ]
    assert circles(house.files) == [["rlhf.learning.ppo", "rlhf.models.loading"]]
    assert circles(house.rooms) == [["rlhf.learning", "rlhf.models"]]


def test_every_room_begins_with_a_docstring_and_only_the_client_exports():
    for file in HOUSE.folders:
        body = ast.parse((ROOT / file).read_text()).body
        assert isinstance(body[0], ast.Expr), file
        assert len(body) == 1 or str(file) == "rlhf/client/__init__.py", file


def test_algorithms_import_torch_and_the_standard_library_alone():
    allowed = set(sys.stdlib_module_names) | {"torch", "rlhf"}
    for file in (ROOT / "rlhf/algorithms").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            assert {module.split(".")[0] for module in modules} <= allowed, file.name


def loaded_by(modules: list[str], forbidden: set[str]) -> str:
    """Imports modules in a process of its own; returns what it says, empty if it loaded nothing that is forbidden."""
    script = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    script += f"assert not {forbidden!r} & set(sys.modules), {forbidden!r} & set(sys.modules)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stderr


def test_clients_servers_and_the_command_line_load_without_torch():
    rooms = ("rlhf.client", "rlhf.serving", "rlhf_cli.commands", "rlhf_cli.cluster")
    modules = [module for module in HOUSE.files if module.startswith(rooms)]
    assert len(modules) > 40
    assert loaded_by(modules, {"torch", "transformers", "vllm"}) == ""


def test_what_happens_to_weights_loads_without_a_network():
    modules = [module for module in HOUSE.files if module.startswith(("rlhf.learning", "rlhf.models"))]
    assert "rlhf.learning.ppo" in modules
    assert loaded_by(modules, {"grpc", "prometheus_client"}) == ""
