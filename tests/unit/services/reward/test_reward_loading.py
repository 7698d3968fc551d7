"""Loading other weights, with tiny models: what is taken, what is refused, and that the present model stays."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file

from rlhf.errors import InvalidRequestError, PreconditionError, ServiceError
from rlhf.models.loading import load_tokenizer
from rlhf.models.scalar_model import ScalarModel
from services.reward.config import LimitsConfig, ModelsConfig
from services.reward.core import RewardCore
from services.reward.loading import ModelLoader
from services.reward.metrics import RewardMetrics
from services.reward.scorers.config import ScorerConfig, build_scorer, reloaded, scorer_config
from services.reward.scorers.scorer import ErrorCode, ScoreError, TextPair
from tests.support.number_scorer import NumberScorer, loaded, text
from tests.support.tiny_model import make_tiny_reward_model

PAIR = TextPair("hi", "yes")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three reward models that share a tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for seed in range(3):
        make_tiny_reward_model(root / str(seed), seed)
    return root


def config_of(**settings: Any) -> ScorerConfig:
    return scorer_config(dtype="float32", device="cpu", **settings)


async def serving(config: ScorerConfig, *roots: Path) -> RewardCore:
    loader = ModelLoader(config, ModelsConfig(allowed_roots=[str(root) for root in roots]), build_scorer, reloaded)
    core = RewardCore(lambda: build_scorer(config), LimitsConfig(), RewardMetrics(CollectorRegistry()), loader=loader)
    await core.load()
    return core


@pytest.fixture
async def core(root: Path) -> AsyncIterator[RewardCore]:
    """Serves model 0."""
    core = await serving(config_of(kind="model", path=str(root / "0")), root)
    yield core
    await core.close()


async def reward_of(core: RewardCore) -> float:
    (outcome,) = (await core.score([PAIR])).outcomes
    assert isinstance(outcome, float)
    return outcome


async def expected_of(path: Path) -> float:
    scorer = build_scorer(config_of(kind="model", path=str(path)))
    (reward,) = scorer.score([scorer.prepare(PAIR)])
    return float(reward)


async def test_another_model_is_served_with_its_own_rewards_and_version(core: RewardCore, root: Path) -> None:
    assert await reward_of(core) == pytest.approx(await expected_of(root / "0"), abs=1e-5)
    before = core.info.version
    change = await core.load_model([str(root / "1")])
    assert change.previous_model_version == before
    assert change.model_version == core.info.version != before
    assert change.load_seconds > 0
    assert core.info.name == str((root / "1").resolve())
    assert await reward_of(core) == pytest.approx(await expected_of(root / "1"), abs=1e-5)
    again = await core.load_model([str(root / "1")])
    assert again.model_version == again.previous_model_version


async def refused(core: RewardCore, error: type[ServiceError], match: str, *paths: object, component: str = "") -> None:
    """The load is refused, and what was served is served on."""
    version, reward = core.info.version, await reward_of(core)
    with pytest.raises(error, match=match):
        await core.load_model([str(path) for path in paths], component)
    assert core.info.version == version
    assert await reward_of(core) == reward


async def test_what_may_not_be_loaded_is_refused_and_the_old_model_serves_on(
    core: RewardCore, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(root / "1", outside)
    (root / "escape").symlink_to(outside)
    for path in (outside, root / "escape"):
        await refused(core, InvalidRequestError, "does not lead below one of", path)
    shutil.copytree(root / "1", root / "pickled")
    torch.save({}, root / "pickled" / "pytorch_model.bin")
    await refused(core, InvalidRequestError, "never pickles or code", root / "pickled")
    await refused(core, InvalidRequestError, "model_paths is empty")
    await refused(core, InvalidRequestError, "takes 1", root / "1", root / "2")
    await refused(core, InvalidRequestError, "the scorer is no sum", root / "1", component="part")


async def test_weights_with_nan_are_found_by_the_trial(core: RewardCore, root: Path) -> None:
    broken = root / "broken"
    shutil.copytree(root / "1", broken)
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    await refused(core, PreconditionError, "failed to score a probe pair: the scorer answered nan", broken)


@pytest.mark.parametrize("damage", ["truncate", "config", "other"])
async def test_a_checkpoint_that_does_not_load_is_refused(core: RewardCore, root: Path, damage: str) -> None:
    broken = root / damage
    shutil.copytree(root / "1", broken)
    if damage == "truncate":
        data = (broken / "model.safetensors").read_bytes()
        (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif damage == "config":
        (broken / "config.json").write_text("{")
    else:
        save_file({"other": torch.zeros(1)}, broken / "model.safetensors", {"format": "pt"})
    await refused(core, PreconditionError, "the model does not load: .*the previous model is still served", broken)


async def test_a_model_with_another_tokenizer_is_refused(core: RewardCore, root: Path) -> None:
    tokenizer = load_tokenizer(root / "1")
    tokenizer.add_tokens(["<|new|>"])
    ScalarModel.load(root / "1", "float32").save(root / "foreign", tokenizer)
    await refused(
        core, PreconditionError, "callers send ids made with that; load a model that shares it", root / "foreign"
    )


async def test_without_allowed_roots_nothing_is_loaded(root: Path) -> None:
    core = await serving(config_of(kind="model", path=str(root / "0")))
    await refused(core, PreconditionError, "allowed_roots is empty", root / "1")
    await core.close()


async def test_a_rule_has_no_weights_to_load(root: Path) -> None:
    core = await serving(scorer_config(kind="length"), root)
    await refused(core, InvalidRequestError, "which has no checkpoint to load", root / "1")
    await core.close()


async def test_a_part_of_a_sum_is_replaced_by_name_and_the_next_load_starts_from_there(root: Path) -> None:
    parts = [
        {"name": name, "kind": "model", "path": str(root / "0"), "dtype": "float32", "device": "cpu", "weight": 1.0}
        for name in ("a", "b")
    ]
    core = await serving(scorer_config(kind="sum", components=parts), root)
    await core.load_model([str(root / "1")], "a")
    await core.load_model([str(root / "2")], "b")
    (score,) = (await core.score([PAIR])).outcomes
    await core.close()
    assert not isinstance(score, float | ScoreError)
    first, second = await expected_of(root / "1"), await expected_of(root / "2")
    assert [part.reward for part in score.components] == pytest.approx([first, second], abs=1e-5)
    assert score.reward == pytest.approx(first + second, abs=1e-5)


class Random(NumberScorer):
    """Answers the probe differently each time."""

    def score(self, batch: list[str]) -> list[float]:
        self.factor += 1
        return [self.factor for _ in batch]


class Raising(NumberScorer):
    """Cannot score."""

    def score(self, batch: list[str]) -> list[float]:
        raise RuntimeError("secret path")


class Unprepared(NumberScorer):
    """Takes no pair."""

    def prepare(self, item: object) -> ScoreError:
        return ScoreError(ErrorCode.INVALID_ITEM, "takes no text")


@pytest.mark.parametrize(
    ("candidate", "match"),
    [
        (Random(), "gave the same pair the rewards 2.0 and 3.0; a reward must not be random"),
        (Raising(), "failed to score a probe pair: RuntimeError"),
        (Unprepared(), "failed to score a probe pair: takes no text"),
        (NumberScorer(tokenizer_digest="t2"), "the model's tokenizer is 't2', the present one is 't1'"),
    ],
)
async def test_a_candidate_is_tried_before_it_serves_and_closed_if_it_fails(
    candidate: NumberScorer, match: str, root: Path
) -> None:
    config = config_of(kind="model", path=str(root / "0"))
    roots = ModelsConfig(allowed_roots=[str(root)])
    loader = ModelLoader(config, roots, lambda config: candidate, reloaded)
    async with loaded(NumberScorer("old"), loader=loader) as (core, registry):
        with pytest.raises(PreconditionError, match=match):
            await core.load_model([str(root / "1")])
        assert (await core.score([text("1")])).model_version == "old"
        assert registry.get_sample_value("rlhf_reward_model_loads_total", {"result": "failed"}) == 1
    assert candidate.closed.is_set()
