"""The house as its files say it: which module imports which, in which room each is, and who may use whom."""

import ast
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("rlhf", "services", "rlhf_cli")

PLAIN = {"rlhf"}
"""The plain types at the root of the library, which every room uses."""

MAY_USE = {
    "rlhf": set(),
    "rlhf.v1": set(),
    "rlhf.client": {"rlhf.v1"},
    "rlhf.client.adapters": {"rlhf.client"},
    "rlhf.serving": {"rlhf.v1", "rlhf.client"},
    "rlhf.serving.batching": {"rlhf.serving"},
    "rlhf.serving.http": {"rlhf.serving", "rlhf.client"},
    "rlhf.algorithms": set(),
    "rlhf.models": {"rlhf.algorithms"},
    "rlhf.data": {"rlhf.models"},
    "rlhf.learning": {"rlhf.algorithms", "rlhf.models", "rlhf.data"},
}
"""Beside itself and, but for the algorithms, the plain types. Rooms that are not named are of services or rlhf_cli."""


class House:
    """The imports of every file of the three packages below a folder, at any depth of nesting; generated stubs too."""

    def __init__(self, root: Path) -> None:
        paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
        self.folders = [path.relative_to(root) for path in paths if path.name == "__init__.py"]
        """The files that make folders packages."""
        names = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
        self.files = {name: _imported(name, path, set(names)) - {name} for name, path in names.items()}
        """The modules that each module imports; what a room exports is imported from its `__init__`."""
        self.rooms: dict[str, set[str]] = {}
        """What lies side by side in one folder, files and folders alike, and which of its neighbours each imports."""
        for name, imported in self.files.items():
            for other in imported:
                here, there = _neighbours(name, other)
                self.rooms.setdefault(here, set()).add(there)


def _neighbours(name: str, other: str) -> tuple[str, str]:
    """Returns the two children of the innermost folder that has both modules below it."""
    mine, its = name.split("."), other.split(".")
    depth = next(depth for depth, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b)
    return ".".join(mine[: depth + 1]), ".".join(its[: depth + 1])


def room_of(module: str) -> str:
    """Returns the folder of a module."""
    return module.rpartition(".")[0]


def _imported(name: str, path: Path, modules: set[str]) -> set[str]:
    """Returns those of the modules that a file imports, or imports something from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {_module_of(f"{source}.{alias.name}", modules) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {_module_of(alias.name, modules) for alias in node.names}
    return found - {""}


def _module_of(dotted: str, modules: set[str]) -> str:
    """Returns the module that a name is, or is a name of; empty if it is none of them."""
    for each in (dotted, dotted.rpartition(".")[0]):
        for module in (each, f"{each}.__init__"):
            if module in modules:
                return module
    return ""


def imports_upward(house: House) -> list[str]:
    """Returns the imports that the layers forbid, as sentences."""
    return [
        f"{name.replace('.', '/')}.py imports {other}"
        for name, imported in house.files.items()
        for other in sorted(imported)
        if not _may_use(name, other)
    ]


def _may_use(name: str, other: str) -> bool:
    package, other_package = name.split(".")[0], other.split(".")[0]
    if package == "rlhf_cli":
        return True
    if package == "services":
        # No service imports another.
        return other_package == "rlhf" or name.split(".")[1] == other.split(".")[1]
    room, other_room = room_of(name), room_of(other)
    plain = set() if room == "rlhf.algorithms" else PLAIN
    return other_package == "rlhf" and (room == other_room or other_room in plain | MAY_USE.get(room, set()))


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Returns the sets of nodes that reach one another, each sorted (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in graph:
        if node not in index:
            visit(node)
    return found
