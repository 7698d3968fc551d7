"""The weighted sum by hand, whose fault an error is, and that a component that waits keeps no other waiting."""

import math
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf.client.reward_types import ComponentReward
from rlhf.errors import ConfigError
from services.reward.scorers.config import ScorerConfig, build_scorer, scorer_config
from services.reward.scorers.scorer import (
    ErrorCode,
    Item,
    Outcome,
    Score,
    ScoreError,
    ScorerError,
    ScorerInfo,
    TextPair,
    TokenPair,
)
from services.reward.scorers.sum import Component, SumScorer
from tests.support.paths import ROOT
from tests.support.tiny_model import make_tiny_tokenizer


class Table:
    """A Scorer that looks its outcomes up by the completion."""

    def __init__(
        self,
        outcomes: dict[str, Outcome | Exception],
        *,
        digest: str = "",
        version: str = "1",
        max_tokens: int = 0,
        pads: bool = False,
    ) -> None:
        self.info = ScorerInfo(
            name="table", version=version, tokenizer_digest=digest, max_sequence_tokens=max_tokens, pads=pads
        )
        self.outcomes = outcomes
        self.batches: list[list[str]] = []
        self.closed = False

    def prepare(self, item: Item) -> str | ScoreError:
        assert isinstance(item, TextPair)
        if item.completion == "refused":
            return ScoreError(ErrorCode.TOO_LONG, "send less")
        return item.completion

    def size_of(self, prepared: str) -> int:
        return len(prepared)

    def score(self, batch: list[str]) -> Sequence[Outcome]:
        self.batches.append(batch)
        outcomes = [self.outcomes[completion] for completion in batch]
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]

    def close(self) -> None:
        self.closed = True


def score(scorer: SumScorer, *completions: str) -> list[Score | ScoreError]:
    return scorer.score([scorer.prepare(TextPair("p", completion)) for completion in completions])


def test_the_sum_names_its_parts_with_weight_and_reward():
    scorer = SumScorer([Component("good", 2.0, Table({"a": 1.5})), Component("long", -0.5, Table({"a": 4.0}))])
    # 2 * 1.5 - 0.5 * 4 = 1
    parts = (ComponentReward("good", 2.0, 1.5), ComponentReward("long", -0.5, 4.0))
    assert score(scorer, "a") == [Score(1.0, None, parts)]


def test_spreads_add_up_in_squares_over_those_that_have_one():
    components = [
        Component("x", 2.0, Table({"a": Score(1.0, 1.5)})),
        Component("y", -1.0, Table({"a": Score(1.0, 4.0)})),
        Component("z", 9.0, Table({"a": 0.0})),
    ]
    (outcome,) = score(SumScorer(components), "a")
    assert isinstance(outcome, Score)
    assert outcome.spread == 5.0  # sqrt((2 * 1.5)^2 + (-1 * 4)^2)
    assert [part.spread for part in outcome.components] == [1.5, 4.0, None]


def test_items_keep_their_order():
    table = Table({"a": 1.0, "b": 2.0, "c": 3.0})
    outcomes = score(SumScorer([Component("x", 10.0, table)]), "c", "a", "b")
    assert [outcome.reward for outcome in outcomes if isinstance(outcome, Score)] == [30.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (ScoreError(ErrorCode.TIMEOUT, "too slow"), ErrorCode.TIMEOUT, "component 'bad': too slow"),
        (ScorerError(ErrorCode.SCORER_FAILED, "broke"), ErrorCode.SCORER_FAILED, "component 'bad': broke"),
        (ZeroDivisionError(), ErrorCode.SCORER_FAILED, "component 'bad': the scorer raised ZeroDivisionError"),
        (math.nan, ErrorCode.NOT_FINITE, "component 'bad': the scorer answered nan"),
    ],
)
def test_an_error_of_any_component_is_the_items_and_its_neighbours_have_their_sums(
    outcome: Outcome | Exception, code: ErrorCode, message: str
):
    good, bad = Table({"a": 1.0, "b": 1.0, "c": 1.0}), Table({"a": 2.0, "b": outcome, "c": 4.0})
    first, second, third = score(SumScorer([Component("good", 1.0, good), Component("bad", 1.0, bad)]), "a", "b", "c")
    assert isinstance(first, Score)
    assert isinstance(second, ScoreError)
    assert isinstance(third, Score)
    assert (first.reward, third.reward) == (3.0, 5.0)
    assert second.code is code
    assert message in second.message
    assert good.batches == [["a", "b", "c"]]  # it did not have to answer twice


def test_what_a_component_does_not_take_is_refused_by_its_name():
    scorer = SumScorer([Component("x", 1.0, Table({})), Component("y", 1.0, Table({}))])
    fault = scorer.prepare(TextPair("p", "refused"))
    assert fault == ScoreError(ErrorCode.TOO_LONG, "component 'x': send less")


def test_components_that_wait_are_asked_together_and_beside_the_rest():
    # Each of the three goes on only when all have begun.
    barrier = threading.Barrier(3, timeout=30)

    class Meeting(Table):
        def score(self, batch: list[str]) -> Sequence[Outcome]:
            barrier.wait()
            return super().score(batch)

    scorer = SumScorer(
        [
            Component("model", 1.0, Meeting({"a": 1.0})),
            Component("judge", 1.0, Meeting({"a": 2.0}), waits=True),
            Component("own", 1.0, Meeting({"a": 4.0}), waits=True),
        ]
    )
    (outcome,) = score(scorer, "a")
    scorer.close()
    assert isinstance(outcome, Score)
    assert [part.reward for part in outcome.components] == [1.0, 2.0, 4.0]


def test_what_it_says_of_itself_comes_from_its_components():
    scorer = SumScorer(
        [
            Component("x", 0.5, Table({}, digest="d", max_tokens=512)),
            Component("y", -2.0, Table({}, max_tokens=0)),
            Component("z", 1.0, Table({}, digest="d", max_tokens=64, pads=True)),
        ]
    )
    info = scorer.info
    assert (info.name, info.tokenizer_digest, info.max_sequence_tokens) == ("sum of 0.5 x, -2 y, 1 z", "d", 64)
    assert (info.pads, info.logit_scale) == (True, 1.0)
    assert scorer.size_of(("four", "a", "")) == 4


def test_the_version_changes_with_weights_names_and_components():
    versions = [
        SumScorer([Component(name, weight, Table({}, version=version))]).info.version
        for name, weight, version in [("x", 1.0, "1"), ("x", 1.5, "1"), ("y", 1.0, "1"), ("x", 1.0, "2")]
    ]
    assert len(set(versions)) == 4
    assert SumScorer([Component("x", 1.0, Table({}))]).info.version == versions[0]


def test_components_of_two_tokenizers_are_refused():
    components = [
        Component(name, 1.0, Table({}, digest=digest)) for name, digest in [("x", "a"), ("y", ""), ("z", "b")]
    ]
    with pytest.raises(ConfigError, match="has 'z', whose tokenizer is not that of 'x'"):
        SumScorer(components)


def test_closing_closes_the_components():
    tables = [Table({}), Table({})]
    SumScorer([Component(f"{index}", 1.0, table) for index, table in enumerate(tables)]).close()
    assert [table.closed for table in tables] == [True, True]


def sum_of(*parts: dict[str, object]) -> ScorerConfig:
    return scorer_config(kind="sum", components=list(parts))


def test_the_factory_builds_the_configured_sum():
    scorer = build_scorer(
        sum_of(
            {"name": "short", "weight": 2, "kind": "length", "target_length": 4},
            {"name": "digits", "weight": -1, "kind": "pattern", "pattern": r"\d", "pattern_mode": "count"},
        )
    )
    (outcome,) = scorer.score([scorer.prepare(TextPair("p", "a12"))])
    # 2 * (1 - |3 - 4| / 4) - 1 * 2
    assert outcome == Score(-0.5, None, (ComponentReward("short", 2.0, 0.75), ComponentReward("digits", -1.0, 2.0)))


def test_a_sum_of_a_model_and_a_rule_takes_text_and_tokens_alike(tiny_reward_path: Path):
    folder = str(tiny_reward_path)
    model = {"name": "model", "kind": "model", "path": folder, "dtype": "float32", "device": "cpu"}
    scorer = build_scorer(sum_of(model, {"name": "short", "kind": "length", "tokenizer": folder}))
    tokenizer = make_tiny_tokenizer()
    prompt_ids = tokenizer.encode("<|user|>hi<|end|><|assistant|>")
    items = [TextPair("hi", "yes"), TokenPair(prompt_ids, tokenizer.encode("yes<|end|>"))]
    text, tokens = scorer.score([scorer.prepare(item) for item in items])
    assert isinstance(text, Score)
    assert isinstance(tokens, Score)
    assert tokens.reward == pytest.approx(text.reward, abs=1e-5)
    assert [part.name for part in text.components] == ["model", "short"]
    assert scorer.info.max_sequence_tokens == 512


def test_a_sum_of_a_rule_and_a_scorer_of_ones_own():
    own = {"target": "json_answer:JsonAnswer", "path": str(ROOT / "examples/scorers")}
    scorer = build_scorer(
        sum_of(
            {"name": "json", "weight": 3, "kind": "python", "python": own},
            {"name": "short", "weight": 1, "kind": "length", "target_length": 2},
        )
    )
    outcomes = scorer.score([scorer.prepare(TextPair("p", completion)) for completion in ("{}", "no")])
    scorer.close()
    # A JSON object earns 3 * 1, and both are of the best length.
    assert [outcome.reward for outcome in outcomes if isinstance(outcome, Score)] == [4.0, 1.0]


def test_a_component_that_cannot_be_built_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"component 'm': scorer.path is '.*nowhere': no such directory"):
        build_scorer(sum_of({"name": "m", "kind": "model", "path": str(tmp_path / "nowhere")}))
