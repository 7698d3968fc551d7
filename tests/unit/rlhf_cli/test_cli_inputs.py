"""What commands read, where they look for services, and what they print when it is wrong."""

import json
from pathlib import Path

import pytest

from rlhf.errors import ConfigError, NotReadyError
from rlhf_cli.commands.inputs import pair_records, read_records
from rlhf_cli.commands.targets import explain_absence, resolve_all, resolve_target
from rlhf_cli.errors import UsageError
from rlhf_cli.local.services import ServiceEntry, read_services, write_services

POLICY = ServiceEntry(name="policy", kind="policy", target="here:1", metrics_url="http://here:2/metrics")
TRUTH = ServiceEntry(name="true-score", kind="reward", target="here:3")


@pytest.fixture
def services_file(tmp_path: Path) -> Path:
    path = tmp_path / "services.toml"
    write_services(path, [POLICY, TRUTH])
    return path


def test_a_services_file_reads_back_as_it_was_written(services_file: Path) -> None:
    assert read_services(services_file) == [POLICY, TRUTH]


def test_a_services_file_that_names_none_at_the_moment_says_so(services_file: Path) -> None:
    write_services(services_file, [])
    with pytest.raises(ConfigError, match=r"services\.toml: it names no service; the command that keeps it runs none"):
        read_services(services_file)


def test_a_services_file_with_a_typo_is_refused_by_its_path(services_file: Path) -> None:
    services_file.write_text(services_file.read_text().replace("kind =", "kindd =", 1))
    with pytest.raises(ConfigError, match="kindd"):
        read_services(services_file)


def test_a_target_comes_from_the_flag_then_the_file_then_the_environment_then_the_default(
    services_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_POLICY_TARGET", "there:9")
    assert resolve_target("policy", "flag:1", services_file) == "flag:1"
    assert resolve_target("policy", None, services_file) == "here:1"
    assert resolve_target("policy", None, None) == "there:9"
    assert resolve_target("reference", None, None) == "localhost:50053"
    with pytest.raises(ConfigError, match="names no reference service; name one with --target"):
        resolve_target("reference", None, services_file)


def test_status_looks_at_the_file_or_at_one_service_of_each_kind_and_a_flag_wins(services_file: Path) -> None:
    none = {"policy": None, "reward": None, "reference": None, "trainer": None}
    assert [entry.target for entry in resolve_all(none, None)] == [f"localhost:{port}" for port in range(50051, 50055)]
    assert resolve_all(none, services_file) == [POLICY, TRUTH]
    replaced = resolve_all({**none, "reward": "flag:1"}, services_file)
    assert [(entry.name, entry.target) for entry in replaced] == [("policy", "here:1"), ("reward", "flag:1")]


def test_absence_is_told_in_a_few_words_and_a_services_own_words_are_kept() -> None:
    refused = NotReadyError("reward service at a:1: connections failing; Connection refused")
    assert explain_absence(refused) == "refuses connections; is the service running?"
    late = NotReadyError("reward service at a:1: did not answer within the call's deadline")
    assert explain_absence(late) == "did not answer in time; is the service running?"
    one_sided = NotReadyError("connections failing; last error: Socket closed; either both sides have ... RLHF_TLS ...")
    assert explain_absence(one_sided) == "closes connections: does one side alone have the RLHF_TLS variables?"
    assert explain_absence(NotReadyError("the reward service is still loading")) is None


def test_records_are_read_with_their_place_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": ""}\n')
    first, second = read_records(path)
    assert first.text("prompt") == "a"
    with pytest.raises(ConfigError, match=r"pairs.jsonl:3: prompt is ''; it must be text, not empty"):
        second.text("prompt")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds nothing"), ("[]", r"x.jsonl:1: a list, not an object"), ("{", r"x.jsonl:1: not JSON")],
)
def test_a_file_that_is_no_jsonl_of_objects_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_records(tmp_path / "x.jsonl")


def test_a_pair_comes_from_two_flags_or_from_a_file_not_from_half_of_each(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completion": "c"}))
    assert pair_records("p", "c", None)[0].value == pair_records(None, None, path)[0].value
    for arguments in ((None, None, None), ("p", None, None), ("p", "c", path)):
        with pytest.raises(UsageError, match="give --prompt and --completion, or --file"):
            pair_records(*arguments)
