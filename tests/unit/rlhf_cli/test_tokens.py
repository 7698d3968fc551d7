"""`rlhf token new`: what it writes is what services take, and nobody else reads it."""

import stat

from rlhf.client.channel import TOKEN_VARIABLE, token_source
from rlhf.serving.auth import ListedClients, read_clients
from rlhf.serving.calls import CallCredentials
from rlhf_cli.main import main


def test_the_token_and_the_printed_client_belong_together(tmp_path, capsys):
    file, listed = tmp_path / "token", tmp_path / "clients.toml"
    assert main(["token", "new", str(file), "--name", "trainer", "--scope", "score", "--scope", "generate"]) == 0
    printed = capsys.readouterr().out
    listed.write_text(printed)
    token = token_source(None, {TOKEN_VARIABLE: str(file)})()
    assert token not in printed
    caller = ListedClients(read_clients(listed)).authorize(CallCredentials(f"Bearer {token}"), "score")
    assert (caller.name, caller.scopes) == ("trainer", {"score", "generate"})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_is_there_stays_as_it_is(tmp_path, capsys):
    file = tmp_path / "token"
    file.write_text("the old one")
    assert main(["token", "new", str(file), "--name", "trainer", "--scope", "score"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert file.read_text() == "the old one"


def test_a_wrong_scope_or_name_is_refused_before_anything_is_written(tmp_path, capsys):
    file = tmp_path / "token"
    assert main(["token", "new", str(file), "--name", "trainer", "--scope", "scroe"]) == 2
    assert main(["token", "new", str(file), "--name", "the trainer", "--scope", "score"]) == 2
    assert "rlhf: --scope is 'scroe'; known: admin, generate, score, watch" in capsys.readouterr().err
    assert not file.exists()
