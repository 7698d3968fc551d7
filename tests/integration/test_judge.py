"""The judge behind an HTTP server that speaks the chat completions protocol, with probabilities computed from texts."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from rlhf.errors import ConfigError
from services.reward.scorers.judge.config import JudgeConfig
from services.reward.scorers.judge.scorer import JudgeScorer, build_judge_scorer
from services.reward.scorers.scorer import ErrorCode, PairScorer, ScoreError, ScorerError, TextPair
from tests.support.fake_judge import FIRST_PLACE, KEY, FakeJudge, serving, sigmoid


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


@pytest.fixture
def endpoint(judge: FakeJudge) -> Iterator[str]:
    with serving(judge.app) as url:
        yield url


@contextlib.contextmanager
def asking(endpoint: str, **settings: object) -> Iterator[JudgeScorer]:
    config = JudgeConfig.model_validate({"endpoint": endpoint, "model": "fake", "timeout_seconds": 5, **settings})
    config.require_complete()
    scorer = build_judge_scorer(config, decoder=None)
    try:
        yield scorer
    finally:
        scorer.close()


def pairs(*completions: object) -> list[TextPair]:
    return [TextPair("task", str(completion)) for completion in completions]


def test_the_reward_is_the_probability_of_yes_given_an_answer(judge: FakeJudge, endpoint: str) -> None:
    with asking(endpoint, rubric="Be brief.") as scorer:
        assert scorer.score(pairs(0, 2, -1)) == pytest.approx([0.5, sigmoid(2), sigmoid(-1)])
    assert all("Be brief." in request["messages"][0]["content"] for request in judge.requests)
    assert {(request["max_tokens"], request["logprobs"], request["top_logprobs"]) for request in judge.requests} == {
        (1, True, 20)
    }


def test_a_comparison_is_asked_in_both_orders_so_that_the_place_does_not_count(endpoint: str) -> None:
    with asking(endpoint) as scorer:
        assert isinstance(scorer, PairScorer)
        better, equal, worse = scorer.compare(
            [tuple(pairs(2, 1)), tuple(pairs(1, 1)), tuple(pairs(1, 2))]  # type: ignore[list-item]
        )
    assert better == pytest.approx((sigmoid(1 + FIRST_PLACE) + sigmoid(1 - FIRST_PLACE)) / 2)
    assert equal == pytest.approx(0.5)  # one order alone would say 0.6
    assert better + worse == pytest.approx(1.0)


def test_completions_of_different_prompts_are_not_compared(endpoint: str) -> None:
    with asking(endpoint) as scorer:
        outcomes = scorer.compare([(TextPair("p", "1"), TextPair("q", "2")), (TextPair("p", "1"), TextPair("p", "1"))])
    assert isinstance(outcomes[0], ScoreError)
    assert outcomes[0].code is ErrorCode.INVALID_ITEM
    assert outcomes[1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("word", "code", "message"),
    [
        ("hang", ErrorCode.TIMEOUT, "longer than judge.timeout_seconds = 1"),
        ("busy", ErrorCode.UNAVAILABLE, "answered 429"),
        ("refuse", ErrorCode.SCORER_FAILED, "maximum context length is 8 tokens"),
        ("garbage", ErrorCode.SCORER_FAILED, "no completion"),
        ("wordless", ErrorCode.SCORER_FAILED, "sent no top_logprobs"),
        ("chatty", ErrorCode.SCORER_FAILED, "its likeliest first token is 'Well'"),
    ],
)
def test_a_question_that_fails_has_an_error_and_the_others_their_rewards(
    endpoint: str, word: str, code: ErrorCode, message: str
) -> None:
    with asking(endpoint, timeout_seconds=1, max_retries=1) as scorer:
        first, failed, last = scorer.score(pairs(0, word, 2))
    assert (first, last) == (pytest.approx(0.5), pytest.approx(sigmoid(2)))
    assert isinstance(failed, ScoreError)
    assert failed.code is code
    assert message in failed.message


def test_a_question_that_was_refused_as_busy_is_asked_again(judge: FakeJudge, endpoint: str) -> None:
    judge.times_busy = 2
    with asking(endpoint, max_retries=2, max_concurrency=1) as scorer:
        assert scorer.score(pairs(0)) == pytest.approx([0.5])
    assert len(judge.requests) == 3


def test_no_more_questions_are_asked_at_once_than_allowed(judge: FakeJudge, endpoint: str) -> None:
    with asking(endpoint, max_concurrency=3) as scorer:
        assert scorer.score(pairs(*range(12))) == pytest.approx([sigmoid(number) for number in range(12)])
    assert judge.most_at_once == 3


def test_an_endpoint_that_is_away_is_no_fault_of_the_items(judge: FakeJudge) -> None:
    with serving(judge.app) as url:
        port = int(url.split(":")[2].split("/")[0])
    with asking(f"http://127.0.0.1:{port}/v1", max_retries=0) as scorer:
        with pytest.raises(ScorerError, match="cannot be reached") as caught:
            scorer.score(pairs(*range(50)))
        assert caught.value.code is ErrorCode.UNAVAILABLE


def test_the_key_is_sent_and_never_shown(
    judge: FakeJudge, endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with asking(endpoint, api_key_variable="JUDGE_KEY", max_retries=0) as scorer:
        scorer.score(pairs(0))
        with pytest.raises(ScorerError, match=r"answered 401: .*wrong key: \.\.\.") as caught:
            scorer.score(pairs("forbid"))
        assert caught.value.code is ErrorCode.UNAVAILABLE
        assert KEY not in f"{scorer.info} {caught.value}"
    assert Counter(judge.keys) == {f"Bearer {KEY}": 2}
    assert KEY not in caplog.text
    assert "HTTP" not in caplog.text  # no line for every question


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key_variable": "NO_SUCH_KEY"}, "scorer.judge.api_key_variable is 'NO_SUCH_KEY'"),
        ({"endpoint": "http://user:pass@judge/v1"}, "has a user, a password or a query"),
        ({"backend": "policy", "tokenizer": "nowhere"}, "scorer.judge.tokenizer is 'nowhere'"),
    ],
)
def test_a_judge_that_cannot_be_asked_ends_the_start(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught, asking(**{"endpoint": "http://judge/v1", **settings}):
        pass
    assert "pass@" not in str(caught.value)


def test_the_version_changes_with_the_rubric_and_the_model(endpoint: str) -> None:
    versions = set()
    for settings in ({}, {"rubric": "Be brief."}, {"model": "other"}, {"version": "2"}, {}):
        with asking(endpoint, **settings) as scorer:
            versions.add(scorer.info.version)
    assert len(versions) == 4
