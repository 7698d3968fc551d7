"""The ensemble scorer: its rules by hand, what does not fit refused, a member's NaN kept to its item."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from rlhf.config import load_config
from rlhf.errors import ConfigError
from rlhf.models.loading import load_tokenizer
from rlhf.models.scalar_model import ScalarModel
from services.reward.config import LimitsConfig, RewardConfig
from services.reward.core import RewardCore
from services.reward.metrics import RewardMetrics
from services.reward.scorers.config import ScorerConfig, build_scorer, scorer_config
from services.reward.scorers.model import COMBINE_RULES, EnsembleScorer, load_model_scorer
from services.reward.scorers.scorer import ErrorCode, RawPair, Score, ScoreError, TextPair, TokenPair, TokenSequence
from tests.support.tiny_model import make_tiny_reward_model

PAIR = TokenPair([2, 5], [6, 7])


@pytest.fixture(scope="module")
def member_paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("members")
    return [str(make_tiny_reward_model(folder / str(seed), seed)) for seed in range(3)]


def config_of(paths: list[str], **settings: Any) -> ScorerConfig:
    return scorer_config(kind="ensemble", paths=paths, dtype="float32", device="cpu", **settings)


def score_alone(path: str, pair: TokenPair) -> float:
    scorer = load_model_scorer(path, "float32", "cpu")
    (score,) = scorer.score([scorer.prepare(pair)])
    return score


def test_the_rules_by_hand() -> None:
    # 1, 2 and 6: mean 3, lowest 1, variance ((-2)^2 + (-1)^2 + 3^2) / 3 = 14 / 3
    rewards = [1.0, 2.0, 6.0]
    assert COMBINE_RULES["mean"](rewards, 9.0) == 3.0
    assert COMBINE_RULES["worst"](rewards, 9.0) == 1.0
    assert COMBINE_RULES["mean_minus_std"](rewards, 0.5) == pytest.approx(3 - 0.5 * math.sqrt(14 / 3))
    assert COMBINE_RULES["mean_minus_std"](rewards, 0.0) == 3.0  # an explicit 0 is not absent


@pytest.mark.parametrize("combine", ["mean", "worst", "mean_minus_std"])
def test_the_members_scores_are_combined_and_their_spread_is_told(member_paths: list[str], combine: str) -> None:
    scorer = build_scorer(config_of(member_paths, combine=combine, std_coef=2.0))
    (score,) = scorer.score([scorer.prepare(PAIR)])
    alone = [score_alone(path, PAIR) for path in member_paths]
    mean = sum(alone) / 3
    std = math.sqrt(sum((each - mean) ** 2 for each in alone) / 3)
    expected = {"mean": mean, "worst": min(alone), "mean_minus_std": mean - 2.0 * std}[combine]
    assert isinstance(score, Score)
    assert (score.reward, score.spread) == pytest.approx((expected, std), abs=1e-5)
    assert std > 0.01  # the members do differ


def test_the_version_names_all_members_and_the_rule(member_paths: list[str]) -> None:
    versions = [build_scorer(config_of(member_paths, combine="mean_minus_std", std_coef=c)).info for c in (1.0, 2.0)]
    other_members = build_scorer(config_of(member_paths[:2], combine="mean_minus_std")).info
    assert len({versions[0].version, versions[1].version, other_members.version}) == 3
    alone = load_model_scorer(member_paths[0], "float32", "cpu")
    assert alone.info.version in versions[0].version
    assert all(path in versions[0].name for path in member_paths)
    assert versions[0].version.startswith("mean_minus_std(1):")


@pytest.mark.parametrize("combine", ["mean", "worst", "mean_minus_std"])
async def test_nan_of_one_member_is_that_items_error_under_every_rule(member_paths: list[str], combine: str) -> None:
    members = [load_model_scorer(p, "float32", "cpu") for p in member_paths]
    # A broken embedding makes every sequence that holds id 50 NaN for this member, and no other sequence.
    members[1]._model.backbone.get_input_embeddings().weight.data[50] = torch.nan
    scorer = EnsembleScorer(members, combine, 1.0)
    core = RewardCore(lambda: scorer, LimitsConfig(), RewardMetrics(CollectorRegistry()))
    await core.load()
    good, bad = (await core.score([PAIR, TokenPair([2, 50], [6])])).outcomes
    await core.close()
    assert isinstance(good, Score)
    assert isinstance(bad, ScoreError)
    assert bad.code is ErrorCode.NOT_FINITE
    assert f"member {member_paths[1]} answered nan" in bad.message


def test_the_scale_of_logits_is_the_mean_of_the_members(member_paths: list[str], tmp_path: Path) -> None:
    paths = []
    for member, std in ((member_paths[0], 2.0), (member_paths[1], 4.0)):
        model = ScalarModel.load(member, "float32")
        model.set_normalization(mean=0.0, std=std)
        model.save(tmp_path / f"{std}", load_tokenizer(member))
        paths.append(str(tmp_path / f"{std}"))
    assert build_scorer(config_of(paths)).info.logit_scale == 3.0


def test_raw_text_and_sequences_go_to_every_member(member_paths: list[str]) -> None:
    scorer = build_scorer(config_of(member_paths))
    assert scorer.prepare(TokenSequence([2, 5, 6, 7])) == scorer.prepare(PAIR) == [2, 5, 6, 7]
    fault = scorer.prepare(RawPair("", "x" * 513))
    assert isinstance(fault, ScoreError)
    assert fault.code is ErrorCode.TOO_LONG


async def test_disagreement_is_a_histogram(member_paths: list[str]) -> None:
    registry = CollectorRegistry()
    core = RewardCore(lambda: build_scorer(config_of(member_paths)), LimitsConfig(), RewardMetrics(registry))
    await core.load()
    answer = await core.score([PAIR, TextPair("hi", "yes")])
    await core.close()
    first, second = answer.outcomes
    version = {"model_version": answer.model_version}
    assert isinstance(first, Score)
    assert isinstance(second, Score)
    assert registry.get_sample_value("rlhf_reward_spread_count", version) == 2
    assert registry.get_sample_value("rlhf_reward_spread_sum", version) == pytest.approx(first.spread + second.spread)


def test_a_member_of_another_tokenizer_or_the_same_model_twice_is_refused(
    member_paths: list[str], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(member_paths[1])
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    ScalarModel.load(member_paths[1], "float32").save(tmp_path / "other", tokenizer)
    with pytest.raises(ConfigError, match=r"scorer.paths has '.*other', whose tokenizer or chat template is not that"):
        build_scorer(config_of([member_paths[0], str(tmp_path / "other")]))
    ScalarModel.load(member_paths[0], "float32").save(tmp_path / "copy", load_tokenizer(member_paths[0]))
    with pytest.raises(ConfigError, match="which are the same model; members that do not differ cannot disagree"):
        build_scorer(config_of([member_paths[0], str(tmp_path / "copy")]))
    with pytest.raises(ConfigError, match=r"scorer.paths is '.*nowhere': no such directory"):
        build_scorer(config_of([member_paths[0], str(tmp_path / "nowhere")]))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "scorer.paths is .*; kind ensemble needs the directories of two"),
        (["--scorer.paths", "one"], "kind ensemble needs the directories of two reward models or more"),
        (["--scorer.paths", "a,a"], "a directory is there twice; name each member once"),
        (["--scorer.paths", "a,b", "--scorer.combine", "median"], "scorer.combine is 'median'"),
        (["--scorer.paths", "a,b", "--scorer.std_coef", "-1"], "scorer.std_coef is '?-1"),
    ],
)
def test_a_bad_ensemble_is_refused_by_field(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(
            RewardConfig, prog="rlhf-reward", argv=["--scorer.kind", "ensemble", *argv], env_prefix="RLHF_REWARD"
        )
