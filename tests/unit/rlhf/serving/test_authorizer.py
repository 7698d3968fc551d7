"""The list of clients: what it may hold, how faults are named, and who is let in."""

import hashlib
from pathlib import Path

import pytest

from rlhf.errors import ConfigError, PermissionDeniedError, UnauthenticatedError
from rlhf.serving.auth import AUTH_VARIABLE, SCOPES, Client, ListedClients, OpenDoor, make_authorizer, read_clients
from rlhf.serving.calls import ANY_SCOPE, CallCredentials, Caller

DIGEST = hashlib.sha256(b"a-token").hexdigest()
GOOD = f'[[clients]]\nname = "trainer"\nscopes = ["score"]\ntoken_sha256 = "{DIGEST}"\n'
CERTIFIED = '[[clients]]\nname = "eval"\nscopes = ["score", "generate"]\ncertificate = "eval.rlhf"\n'


def read(tmp_path: Path, text: str) -> list[Client]:
    path = tmp_path / "clients.toml"
    path.write_text(text)
    return read_clients(path)


def bearer(token: str) -> CallCredentials:
    return CallCredentials(authorization=f"Bearer {token}")


def test_a_file_lists_clients_by_token_and_by_certificate(tmp_path):
    trainer, evaluation = read(tmp_path, GOOD + CERTIFIED)
    assert trainer == Client(Caller("trainer", frozenset({"score"})), bytes.fromhex(DIGEST), None)
    assert evaluation == Client(Caller("eval", frozenset({"score", "generate"})), None, "eval.rlhf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"should hold tables \[\[clients\]\], one for each client, and no more"),
        ("clients = []", "should hold tables"),
        (GOOD + "[other]\n", "should hold tables"),
        ("clients = [1]", r"clients\[0\] should be a table"),
        ("clients =", "not TOML"),
        (
            GOOD.replace("scopes", "scope"),
            r"clients\[0\] has the unknown key 'scope'; known: certificate, name, scopes",
        ),
        (GOOD.replace("trainer", "the trainer"), r"clients\[0\]\.name should be 1 to 64 letters"),
        (GOOD.replace('["score"]', '"score"'), r"clients\[0\] \('trainer'\): scopes should be a list of words"),
        (GOOD.replace('["score"]', "[]"), "scopes should be a list of words"),
        (GOOD.replace('"score"', '"scores"'), "there is no scope 'scores'; known: admin, generate, score, watch"),
        (GOOD + 'certificate = "x"\n', "give either token_sha256 or certificate"),
        (CERTIFIED.replace('certificate = "eval.rlhf"', ""), "give either token_sha256 or certificate"),
        (CERTIFIED.replace('"eval.rlhf"', "1"), "certificate should be a name"),
        (GOOD + GOOD, "two clients have the same token_sha256"),
        (CERTIFIED + CERTIFIED, "two clients have the same certificate"),
    ],
)
def test_a_fault_in_the_file_is_named_with_its_entry_and_remedy(tmp_path, text, message):
    with pytest.raises(ConfigError, match=rf"^RLHF_AUTH_FILE '.*clients\.toml': .*{message}"):
        read(tmp_path, text)


@pytest.mark.parametrize("digest", ["the-token-itself", DIGEST[:-2], DIGEST + "00"])
def test_a_token_in_the_place_of_its_digest_is_refused_and_not_repeated(tmp_path, digest):
    with pytest.raises(
        ConfigError, match=r"\('trainer'\): token_sha256 should be the SHA-256 .*rlhf token new"
    ) as error:
        read(tmp_path, GOOD.replace(DIGEST, digest))
    assert digest not in str(error.value)


def test_a_file_that_is_not_there_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"RLHF_AUTH_FILE is '.*none', which cannot be read \(No such file"):
        make_authorizer({AUTH_VARIABLE: str(tmp_path / "none")})


def test_without_a_file_everyone_may_do_everything_under_the_name_they_give():
    door = make_authorizer({})
    assert isinstance(door, OpenDoor)
    assert door.authorize(CallCredentials(host="10.0.0.7"), "admin") == Caller("10.0.0.7", SCOPES)
    claimed = CallCredentials(claimed_name="a b\n\x1b[31m" + "x" * 100, host="10.0.0.7")
    assert door.authorize(claimed, "score").name == "a-b---31m" + "x" * 55  # 64 characters in all


def test_a_client_is_known_by_its_token_and_let_in_by_its_scope(tmp_path):
    clients = ListedClients(read(tmp_path, GOOD + CERTIFIED))
    assert clients.authorize(bearer("a-token"), "score").name == "trainer"
    assert clients.authorize(bearer("a-token"), ANY_SCOPE).name == "trainer"
    assert clients.authorize(CallCredentials(authorization="bearer a-token "), "score").name == "trainer"
    with pytest.raises(PermissionDeniedError, match="client 'trainer' has the scopes 'score'; this call needs 'admin'"):
        clients.authorize(bearer("a-token"), "admin")


@pytest.mark.parametrize(
    "authorization", ["Bearer ", "Bearer another", "a-token", "Basic a-token", "", "Bearer \udce9"]
)
def test_any_other_token_is_refused_whatever_certificate_comes_with_it(tmp_path, authorization):
    clients = ListedClients(read(tmp_path, GOOD + CERTIFIED))
    with pytest.raises(UnauthenticatedError):
        clients.authorize(CallCredentials(authorization, certificate_names=("eval.rlhf",)), "score")


def test_a_claimed_name_opens_nothing(tmp_path):
    clients = ListedClients(read(tmp_path, GOOD + CERTIFIED))
    assert clients.authorize(CallCredentials(certificate_names=("x", "eval.rlhf")), "generate").name == "eval"
    with pytest.raises(UnauthenticatedError, match=r"neither a token nor .* \(it names x\)"):
        clients.authorize(CallCredentials(certificate_names=("x",), claimed_name="trainer"), "score")


def test_an_admin_may_do_everything(tmp_path):
    clients = ListedClients(read(tmp_path, GOOD.replace('"score"', '"admin"')))
    for scope in (*SCOPES, ANY_SCOPE):
        assert clients.authorize(bearer("a-token"), scope).name == "trainer"
