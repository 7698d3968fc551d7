"""The token that a client shows, and values that are read again when their files change."""

import logging
from pathlib import Path

import pytest

from rlhf.client import tls as renewed
from rlhf.client.channel import TOKEN_VARIABLE, token_source
from rlhf.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a token, which is looked at for every call."""
    monkeypatch.setattr(renewed, "ASK_SECONDS", 0.0)
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def test_a_token_comes_from_the_caller_or_from_the_file_or_there_is_none(path):
    assert token_source("given", {TOKEN_VARIABLE: str(path)})() == "given"
    assert token_source(None, {TOKEN_VARIABLE: str(path)})() == "first"
    assert token_source(None, {})() is None


def test_a_changed_file_is_read_again_and_one_that_is_no_token_is_not_taken_up(path, caplog):
    token = token_source(None, {TOKEN_VARIABLE: str(path)})
    path.write_text("the-second")
    assert token() == "the-second"
    with caplog.at_level(logging.ERROR):
        for bad in ("", "two words", "caf\u00e9"):
            path.write_text(bad)
            assert token() == "the-second"
        path.unlink()
        assert token() == "the-second"
        assert token() == "the-second"
    # Each kind of fault once: three contents that are no token, then no file.
    assert [record.message.split(": ", 1)[0] for record in caplog.records] == [
        "a changed file cannot be used; what it held before stays in force"
    ] * 2
    path.write_text("third")
    assert token() == "third"


@pytest.mark.parametrize("text", ["", "  \n", "two words", "caf\u00e9", "line\nline"])
def test_what_is_no_token_is_refused_and_not_repeated(path, text):
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"RLHF_TOKEN_FILE '.*token': should hold one token") as error:
        token_source(None, {TOKEN_VARIABLE: str(path)})
    assert not text.strip() or text not in str(error.value)


def test_a_file_that_is_not_there_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"RLHF_TOKEN_FILE is '.*', which cannot be read \(No such file.*unset"):
        token_source(None, {TOKEN_VARIABLE: str(tmp_path / "none")})
