"""Whatever callers send at once, leave, and repeat: each has its own items' outcomes, in order, and nothing is left."""

import asyncio
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.reward.core import Answer, RewardCore
from services.reward.scorers.scorer import ErrorCode, Item, ScoreError
from tests.support.number_scorer import NumberScorer, loaded, text

FAULTS = {
    "word": ErrorCode.INVALID_ITEM,
    "": ErrorCode.INVALID_ITEM,
    "unreadable": ErrorCode.SCORER_FAILED,
    "raises": ErrorCode.SCORER_FAILED,
    "lost": ErrorCode.SCORER_FAILED,
    "none": ErrorCode.SCORER_FAILED,
    "nan": ErrorCode.NOT_FINITE,
    "1e300": ErrorCode.NOT_FINITE,
    "\udc00": ErrorCode.INVALID_ITEM,
}


@dataclass(frozen=True)
class Call:
    """One call: what it sends, how often, and whether its first sending is given up."""

    completions: list[str]
    num_sent: int
    leaves: bool


completions = st.one_of(st.integers(-(10**6), 10**6).map(str), st.sampled_from(sorted(FAULTS)))
calls = st.builds(Call, st.lists(completions, min_size=1, max_size=12), st.integers(1, 3), st.booleans())


@given(st.lists(calls, min_size=1, max_size=8))
def test_every_call_has_the_outcomes_of_its_own_items(all_calls: list[Call]) -> None:
    asyncio.run(send_all(all_calls))


async def send_all(all_calls: list[Call]) -> None:
    async with loaded(NumberScorer()) as (core, registry):
        await asyncio.gather(*(send(core, f"caller-{index}", call) for index, call in enumerate(all_calls)))
        assert registry.get_sample_value("rlhf_reward_queue_items") == 0


async def send(core: RewardCore, caller: str, call: Call) -> None:
    # All callers use one request_id: it is theirs alone.
    items: list[Item | None] = [text(completion) for completion in call.completions]
    sent = [asyncio.create_task(core.score(items, caller=caller, request_id="1")) for _ in range(call.num_sent)]
    if call.leaves:
        await asyncio.sleep(0)
        sent[0].cancel()
    answers = await asyncio.gather(*sent, return_exceptions=True)
    for answer in answers[1:] if call.leaves else answers:
        assert isinstance(answer, Answer)
        assert len(answer.outcomes) == len(call.completions)
        for completion, outcome in zip(call.completions, answer.outcomes, strict=True):
            if completion in FAULTS:
                assert isinstance(outcome, ScoreError)
                assert outcome.code is FAULTS[completion]
            else:
                assert outcome == float(completion)
