"""docs/submit.md shows what `rlhf submit --dry-run` prints."""

import re
import shlex

import pytest

from rlhf_cli.main import main
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "submit.md").read_text()


def test_every_manifest_in_the_docs_is_printed_by_the_command_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    printed, checked = "", 0
    for language, block in re.findall(r"```(sh|yaml)\n(.*?)```", TEXT, flags=re.DOTALL):
        if language == "sh" and "--dry-run" in block:
            assert main(shlex.split(block.replace("\\\n", ""))[1:]) == 0
            printed = capsys.readouterr().out
        elif language == "yaml":
            assert block in printed
            checked += 1
    assert checked == 3


def test_every_command_of_the_docs_exists(capsys: pytest.CaptureFixture[str]) -> None:
    commands = set(re.findall(r"`rlhf runs (\w+)", TEXT))
    assert commands == {"list", "status", "logs", "stop", "resume", "delete"}
    for command in commands:
        assert main(["runs", command, "--help"]) == 0
