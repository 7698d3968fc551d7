"""The core of the reference service, with a scorer made for the test."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rlhf.errors import InternalError, InvalidRequestError, NotReadyError, OverloadedError
from rlhf.serving.batching.limits import BatchLimitsConfig
from services.reference.core import LogprobsItem, ReferenceCore, ReferenceInfo, ReferenceMetrics


class DigitScorer:
    """Answers -id / temperature for each completion token, and NaN for id 9."""

    def __init__(self, pads: bool = True) -> None:
        self.info = ReferenceInfo(
            name="digits", version="v1", tokenizer_digest="t1", max_sequence_tokens=8, vocab_size=10, pads=pads
        )
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[tuple[list[int], float]] = []

    def compute(self, batch: list[LogprobsItem], temperature: float) -> list[list[float]]:
        self.batches.append(([item.completion_ids[0] for item in batch], temperature))
        self.entered.set()
        assert self.gate.wait(10)
        return [[math.nan if i == 9 else -i / temperature for i in item.completion_ids] for item in batch]


@asynccontextmanager
async def loaded(scorer: DigitScorer, **limits: Any) -> AsyncIterator[tuple[ReferenceCore, CollectorRegistry]]:
    registry = CollectorRegistry()
    core = ReferenceCore(lambda: scorer, BatchLimitsConfig(**limits), ReferenceMetrics(registry))
    await core.load()
    try:
        yield core, registry
    finally:
        await core.close()


def item(*completion_ids: int) -> LogprobsItem:
    return LogprobsItem([0], list(completion_ids))


async def test_logprobs_come_back_in_order_one_a_completion_token():
    async with loaded(DigitScorer()) as (core, registry):
        assert await core.compute_logprobs([item(1), item(2, 3), item(4)], 2.0, "t1") == [[-0.5], [-1, -1.5], [-2]]
    assert registry.get_sample_value("rlhf_reference_items_total") == 3
    assert registry.get_sample_value("rlhf_reference_batch_items_sum") == 3
    assert registry.get_sample_value("rlhf_reference_tokens_total") == 7
    # 3 * 3 = 9 padded tokens, 7 of them real.
    assert registry.get_sample_value("rlhf_reference_padding_ratio_sum") == pytest.approx(2 / 9)


async def test_a_model_that_takes_packed_rows_has_batches_of_any_lengths_and_no_padding():
    async with loaded(DigitScorer(pads=False), max_batch_tokens=8) as (core, registry):
        await core.compute_logprobs([item(1), item(2, 3, 4, 5, 6), item(7)], 1.0, "t1")
    # 2 + 6 tokens are the budget; padded to 6 it would have been 12.
    assert registry.get_sample_value("rlhf_reference_batch_items_count") == 2
    assert registry.get_sample_value("rlhf_reference_padding_ratio_sum") == 0


async def test_callers_take_turns():
    scorer = DigitScorer(pads=False)
    async with loaded(scorer, max_batch_tokens=4) as (core, _):
        scorer.gate.clear()
        calls = [asyncio.create_task(core.compute_logprobs([item(1)], 1.0, "", "first"))]
        await asyncio.to_thread(scorer.entered.wait, 10)
        for caller, batch in (("greedy", [item(2)] * 4), ("modest", [item(3)])):
            calls.append(asyncio.create_task(core.compute_logprobs(batch, 1.0, "", caller)))
            await asyncio.sleep(0)
        scorer.gate.set()
        await asyncio.gather(*calls)
    # Two of 2 tokens fill a batch: the first of greedy's is joined by modest's.
    assert [ids for ids, _ in scorer.batches] == [[1], [2, 3], [2, 2], [2]]


async def test_before_the_model_is_loaded_a_call_is_told_so():
    core = ReferenceCore(DigitScorer, BatchLimitsConfig(), ReferenceMetrics(CollectorRegistry()))
    await core.check()
    with pytest.raises(NotReadyError, match="still loading"):
        await core.compute_logprobs([item(1)], 1.0, "t1")
    await core.close()


async def test_different_temperatures_never_share_a_forward_pass():
    scorer = DigitScorer()
    async with loaded(scorer) as (core, _):
        scorer.gate.clear()
        first = asyncio.create_task(core.compute_logprobs([item(1)], 1.0, ""))
        await asyncio.to_thread(scorer.entered.wait, 10)
        rest = [
            asyncio.create_task(core.compute_logprobs([item(token)], temperature, ""))
            for token, temperature in ((2, 1.0), (3, 2.0), (4, 1.0), (5, 2.0))
        ]
        await asyncio.sleep(0)
        scorer.gate.set()
        assert await asyncio.gather(first, *rest) == [[[-1]], [[-2]], [[-1.5]], [[-4]], [[-2.5]]]
    assert scorer.batches == [([1], 1.0), ([2, 4], 1.0), ([3, 5], 2.0)]


@pytest.mark.parametrize(
    ("items", "temperature", "digest", "message"),
    [
        ([], 1.0, "", "items is empty; send at least one"),
        ([item(1)] * 3, 1.0, "", "items has 3 entries, the limit is 2; split the batch"),
        ([item(1)], 0.0, "", "temperature is 0, it must be above 0 and at most 10"),
        ([item(1)], -1.0, "", "temperature is -1"),
        ([item(1)], 10.5, "", "temperature is 10.5"),
        ([item(1)], math.nan, "", "temperature is nan"),
        ([item(1)], math.inf, "", "temperature is inf"),
        ([item(1)], 1.0, "t2", "tokenizer_digest is 't2', this service has 't1'"),
        ([item(1), item()], 1.0, "", r"items\[1\].completion_ids is empty"),
        ([LogprobsItem([], [1])], 1.0, "", r"items\[0\].prompt_ids is empty"),
        ([item(1, 10)], 1.0, "", r"items\[0\].completion_ids\[1\] is 10, outside the vocabulary of 10"),
        ([item(-1)], 1.0, "", r"items\[0\].completion_ids\[0\] is -1"),
        ([item(*range(8))], 1.0, "", r"items\[0\] has 9 tokens of prompt and completion, the model takes at most 8"),
    ],
)
async def test_a_bad_request_names_the_field_the_value_and_the_remedy(
    items: list[LogprobsItem], temperature: float, digest: str, message: str
):
    async with loaded(DigitScorer(), max_items=2) as (core, registry):
        with pytest.raises(InvalidRequestError, match=message):
            await core.compute_logprobs(items, temperature, digest)
    assert registry.get_sample_value("rlhf_reference_errors_total", {"code": "invalid_argument"}) == 1


async def test_a_value_that_is_not_finite_fails_its_own_call_alone():
    scorer = DigitScorer()
    async with loaded(scorer) as (core, _):
        scorer.gate.clear()
        first = asyncio.create_task(core.compute_logprobs([item(1)], 1.0, ""))
        await asyncio.to_thread(scorer.entered.wait, 10)
        bad = asyncio.create_task(core.compute_logprobs([item(1), item(9)], 1.0, ""))
        good = asyncio.create_task(core.compute_logprobs([item(3)], 1.0, ""))
        await asyncio.sleep(0)
        scorer.gate.set()
        await first
        with pytest.raises(InternalError, match=r"items\[1\]: the model answered a log-probability that is not finite"):
            await bad
        assert await good == [[-3]]
    assert len(scorer.batches) == 2  # The bad and the good one did share a pass.


async def test_a_full_queue_refuses_at_once():
    scorer = DigitScorer()
    async with loaded(scorer, max_items=2, max_queue_items=2) as (core, registry):
        scorer.gate.clear()
        first = asyncio.create_task(core.compute_logprobs([item(1)], 1.0, ""))
        await asyncio.to_thread(scorer.entered.wait, 10)
        second = asyncio.create_task(core.compute_logprobs([item(2), item(3)], 1.0, ""))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="no room for 1 more"):
            await core.compute_logprobs([item(4)], 1.0, "")
        assert registry.get_sample_value("rlhf_reference_queue_items") == 2
        assert registry.get_sample_value("rlhf_reference_queue_limit_items") == 2
        scorer.gate.set()
        assert await first == [[-1]]
        assert await second == [[-2], [-3]]


async def test_a_stuck_model_turns_readiness_off_until_it_answers():
    scorer = DigitScorer()
    async with loaded(scorer, stuck_after_seconds=0.01) as (core, _):
        await core.check()
        scorer.gate.clear()
        call = asyncio.create_task(core.compute_logprobs([item(1)], 1.0, ""))
        await asyncio.to_thread(scorer.entered.wait, 10)
        await asyncio.sleep(0.02)
        with pytest.raises(NotReadyError, match="busy with one batch"):
            await core.check()
        scorer.gate.set()
        await call
        await core.check()
