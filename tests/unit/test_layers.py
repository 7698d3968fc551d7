"""The rooms of the house and who may use whom (docs/architecture.md). Rooms not in the table are refused."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SERVICES = Path(__file__).parents[2] / "services"

MAY_USE = {
    "adapters": {"v1", "common", "clients"},
    "algorithms": set(),
    "common": {"v1"},
    "clients": {"v1", "common"},
    "models": {"algorithms", "common"},
    "policy": {"v1", "common", "models", "algorithms"},
    "reward": {"v1", "common", "models", "algorithms"},
    "reference": {"v1", "common", "models", "algorithms"},
    "trainer": {"v1", "common", "models", "algorithms", "clients"},
    "local": {"common", "clients"},
    "demo": {"common", "clients", "models", "trainer", "local"},
    "pipeline": {"common", "clients", "models", "trainer", "local", "demo"},
    "cluster": {"common", "trainer"},
    "cli": {"common", "clients", "models", "trainer", "local", "demo", "pipeline", "cluster"},
}
TORCH_FREE = ("adapters", "common", "clients", "cluster", "cli")


def imported_rooms(file: Path) -> set[str]:
    """Returns the rooms of this package that a file imports, at any depth of nesting."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("rlhf_services.")}
    return rooms


def test_every_room_has_a_row_in_the_table():
    assert {path.parent.name for path in SERVICES.glob("*/__init__.py")} == set(MAY_USE)


@pytest.mark.parametrize("room", sorted(MAY_USE))
def test_a_room_uses_only_the_rooms_below_it(room):
    allowed = MAY_USE[room] | {room}
    wrong = {
        f"{file.relative_to(SERVICES)} imports {other}"
        for file in (SERVICES / room).rglob("*.py")
        for other in imported_rooms(file) - allowed
    }
    assert not wrong


@pytest.mark.parametrize("room", sorted(MAY_USE))
def test_a_room_begins_with_a_docstring_and_nothing_else(room):
    body = ast.parse((SERVICES / room / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_algorithms_import_torch_and_the_standard_library_alone():
    allowed = set(sys.stdlib_module_names) | {"torch", "rlhf_services"}
    for file in (SERVICES / "algorithms").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            assert {module.split(".")[0] for module in modules} <= allowed, file.name


def test_common_clients_and_the_command_line_load_without_torch():
    modules = [
        "rlhf_services." + ".".join(file.relative_to(SERVICES).with_suffix("").parts)
        for room in TORCH_FREE
        for file in (SERVICES / room).glob("*.py")
        if file.stem != "__main__"
    ]
    script = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    script += "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules), 'a heavy import at module level'"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_folder_cannot_be_imported_under_the_wrong_name():
    result = subprocess.run(
        [sys.executable, "-c", "import services"], capture_output=True, text=True, cwd=SERVICES.parent, check=False
    )
    assert "import rlhf_services" in result.stderr
