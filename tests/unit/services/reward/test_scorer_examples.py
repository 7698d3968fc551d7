"""The examples of a user's own scorer and of a judge: what the documentation shows, served as it says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.config import load_toml
from rlhf.errors import ConfigError
from services.reward.config import RewardConfig
from services.reward.scorers.config import build_scorer
from services.reward.scorers.python.scorer import PythonScorer
from services.reward.scorers.scorer import TextPair
from tests.support.paths import ROOT

OSLO = '{"city": "Oslo", "country": "Norway"}'


@pytest.fixture(scope="module")
def scorer() -> Iterator[PythonScorer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        built = build_scorer(load_toml(RewardConfig, Path("examples/scorers/json_answer.toml")).scorer)
    assert isinstance(built, PythonScorer)
    yield built
    built.close()


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (OSLO, 1.0),
        ('{"city": "Oslo"}', 0.5),  # one of two keys
        (f"Here you are: {OSLO}", 0.5),  # text around it costs a half
        ('Sure! {"city": "Oslo"}', 0.25),
        ('{"city": "Oslo"', 0.0),
        ("Oslo", 0.0),
        ('{"a":' * 100_000, 0.0),  # deeper than Python's parser goes
    ],
)
def test_the_example_pays_for_json_with_the_keys(scorer: PythonScorer, completion: str, reward: float) -> None:
    assert scorer.score([TextPair("Where?", completion)]) == [reward]


def test_the_example_refuses_options_that_make_no_sense() -> None:
    config = load_toml(RewardConfig, ROOT / "examples/scorers/json_answer.toml").scorer
    python = config.python.model_copy(
        update={"path": str(ROOT / "examples/scorers"), "options": {"extra_text_costs": 2}}
    )
    with pytest.raises(ConfigError, match=r"ValueError: extra_text_costs is 2; it must be from 0 to 1"):
        build_scorer(config.model_copy(update={"python": python}))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = load_toml(RewardConfig, ROOT / "examples/scorers/json_answer.toml").scorer
    python = config.python.model_copy(update={"path": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"scorer\.python\.path is '.*none': no such directory"):
        build_scorer(config.model_copy(update={"python": python}))


def test_the_judge_example_is_a_configuration_of_the_reward_service() -> None:
    scorer = load_toml(RewardConfig, ROOT / "examples/scorers/judge.toml").scorer
    assert (scorer.kind, scorer.judge.backend, scorer.judge.top_logprobs) == ("judge", "openai", 20)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('kind = "judge"', "kind judge needs an endpoint"),
        ('kind = "judge"\njudge = {endpoint = "judge:8000", model = "m"}', "give a URL such as"),
        ('kind = "judge"\njudge = {endpoint = "http://judge/v1"}', "needs the model's name"),
        ('kind = "judge"\njudge = {endpoint = "j:1", backend = "policy"}', "needs the folder of the served model's"),
        ('kind = "python"', "kind python needs a class"),
        ('kind = "python"\npython = {target = "my-module:Scorer"}', "not a class's name"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path: Path, keys: str, message: str) -> None:
    file = tmp_path / "reward.toml"
    file.write_text(f"[scorer]\n{keys}\n")
    with pytest.raises(ConfigError, match=message):
        load_toml(RewardConfig, file)
