"""The reader's spine (docs/architecture.md): the files that one prompt passes, few, short, and really connected."""

import re

import pytest

from tests.support.house import House
from tests.support.paths import ROOT

MAX_FILES = 12
MAX_LINES = 2500

HOUSE = House(ROOT)
PAGE = (ROOT / "docs/architecture.md").read_text()
ROW = re.compile(r"^\| (\d+) \| \[`([\w/.]+)`\]\([^)]*\) \|([^|]*)\|([^|]*)\|$", re.MULTILINE)
"""A row of the table: its number, its file, the earlier row that leads to it with the way, and what to look for."""
WAY = re.compile(r"(\d+), (?:(imports it|imported by it)|by `([\w/.]+)`|rpc `(\w+)` by `([\w/.]+)`)")

ROWS = [
    (int(number), module.removesuffix(".py").replace("/", "."), way.strip(), what)
    for number, module, way, what in ROW.findall(
        PAGE[PAGE.index("## The way of one prompt") : PAGE.index("## Contracts")]
    )
]
"""Number, module, way and what to look for of each row."""
MODULES = {number: module for number, module, *_ in ROWS}


def text_of(module: str) -> str:
    return (ROOT / f"{module.replace('.', '/')}.py").read_text()


def reaches(module: str, other: str) -> bool:
    """Returns whether a module imports another, be it by way of others."""
    seen: set[str] = set()
    found = {module}
    while found:
        seen |= found
        found = {each for one in found for each in HOUSE.files[one]} - seen
    return other in seen


def fault_of(module: str, way: str) -> str | None:
    """Returns what is not so in the way to a module from its earlier row."""
    match = WAY.fullmatch(way)
    if match is None:
        return f"'{way}' is no way"
    number, imports, middle, rpc, client = match.groups()
    earlier = MODULES.get(int(number))
    if earlier is None:
        return f"there is no row {number}"
    if imports:
        importer, imported = (earlier, module) if imports == "imports it" else (module, earlier)
        return None if imported in HOUSE.files[importer] else f"{importer} does not import {imported}"
    between = (middle or client).removesuffix(".py").replace("/", ".")
    if between not in HOUSE.files:
        return f"there is no {between}"
    if not (reaches(earlier, between) or earlier in HOUSE.files[between]):
        return f"{earlier} and {between} have nothing to do with each other"
    if middle:
        joined = module in HOUSE.files[between] or between in HOUSE.files[module]
        return None if joined else f"{between} and {module} have nothing to do with each other"
    if not re.search(rf"\b{rpc}\b", text_of(between)):
        return f"{between} does not call {rpc}"
    served = [name for name in HOUSE.files if name.endswith(".servicer") and f"async def {rpc}(" in text_of(name)]
    return None if any(module in {name, *HOUSE.files[name]} for name in served) else f"{rpc} does not lead to {module}"


def test_the_spine_is_short():
    lines = {module: text_of(module).count("\n") for module in MODULES.values()}
    print(f"{len(lines)} files, {sum(lines.values())} lines")
    assert [number for number, *_ in ROWS] == list(range(1, len(lines) + 1))
    assert 10 <= len(lines) <= MAX_FILES
    assert sum(lines.values()) <= MAX_LINES


@pytest.mark.parametrize(("number", "module", "way"), [row[:3] for row in ROWS[1:]], ids=list(MODULES.values())[1:])
def test_each_file_follows_from_an_earlier_one(number: int, module: str, way: str):
    assert fault_of(module, way) is None
    assert int(way.split(",")[0]) < number


@pytest.mark.parametrize(("module", "what"), [(row[1], row[3]) for row in ROWS], ids=list(MODULES.values()))
def test_what_to_look_for_is_there(module: str, what: str):
    names = re.findall(r"`([\w.]+)`", what)
    assert names
    assert [name for name in names if name.split(".")[-1] not in text_of(module)] == []


@pytest.mark.parametrize(
    ("module", "way", "fault"),
    [
        ("rlhf.learning.update", "6, imports it", "rlhf.learning.batch does not import rlhf.learning.update"),
        ("rlhf.learning.update", "6, somehow", "'6, somehow' is no way"),
        ("rlhf.learning.update", "60, imports it", "there is no row 60"),
        (
            "services.policy.updater",
            "11, rpc `Score` by `rlhf/client/policy.py`",
            "rlhf.client.policy does not call Score",
        ),
        (
            "rlhf.learning.update",
            "2, rpc `Generate` by `rlhf/client/policy.py`",
            "Generate does not lead to rlhf.learning.update",
        ),
        ("rlhf.learning.update", "1, by `rlhf/none.py`", "there is no rlhf.none"),
    ],
)
def test_a_way_that_is_not_there_is_found(module: str, way: str, fault: str):
    assert fault_of(module, way) == fault
