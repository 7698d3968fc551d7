"""The service's own routes: what rlhf.v1.RewardService offers, as JSON."""

import asyncio
from typing import Any

from fastapi import APIRouter

from rlhf.serving.calls import current_caller
from rlhf.serving.http.calls import GuardedRoute
from rlhf.serving.http.errors import ErrorAnswer
from services.reward.comparing import ComparisonOutcome, ComparisonPair
from services.reward.core import RewardCore
from services.reward.dialects.native_models import (
    CompareAnswer,
    CompareBody,
    ComparisonResult,
    ComponentReward,
    ErrorResult,
    ItemError,
    LoadModelAnswer,
    LoadModelBody,
    Model,
    ReportAnswer,
    RewardReport,
    RewardResult,
    ScoreAnswer,
    ScoreBody,
)
from services.reward.scorers.scorer import Outcome, Score, ScoreError

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request is wrong as a whole; the message says what to mend."},
    401: {"model": ErrorAnswer, "description": "No known token or certificate."},
    403: {"model": ErrorAnswer, "description": "The caller lacks the scope."},
    413: {"model": ErrorAnswer, "description": "The body is larger than http.max_body_bytes."},
    422: {"model": ErrorAnswer, "description": "An item has no reward, where only the whole call can say so."},
    429: {"model": ErrorAnswer, "description": "The queue is full; Retry-After says when there should be room."},
    503: {"model": ErrorAnswer, "description": "Loading, or ending; repeat the call."},
    504: {"model": ErrorAnswer, "description": "Not done within the caller's x-request-timeout-seconds."},
}


def native_routes(core: RewardCore) -> APIRouter:
    """Returns the routes below /v1 that are the service's own."""
    router = APIRouter(route_class=GuardedRoute, tags=["native"], responses=ERRORS)

    @router.post("/v1/score", name="Score", summary="Score completions")
    async def score(body: ScoreBody) -> ScoreAnswer:
        """Gives every item a reward or an error of its own. The call fails only for what concerns all items."""
        answer = await core.score(
            [each.item() for each in body.items],
            tokenizer_digest=body.tokenizer_digest,
            caller=current_caller().name,
            request_id=body.request_id,
        )
        results = [_result(item.item_id, outcome) for item, outcome in zip(body.items, answer.outcomes, strict=True)]
        return ScoreAnswer(results=results, model_version=answer.model_version)

    @router.post("/v1/compare", name="Compare", summary="Compare completions in pairs")
    async def compare(body: CompareBody) -> CompareAnswer:
        """Says for each pair how probable it is that people prefer the first (Bradley and Terry)."""
        answer = await core.compare(
            [ComparisonPair(each.first.item(), each.second.item(), each.margin) for each in body.items],
            tokenizer_digest=body.tokenizer_digest,
            caller=current_caller().name,
            request_id=body.request_id,
        )
        results = [_compared(item.item_id, outcome) for item, outcome in zip(body.items, answer.outcomes, strict=True)]
        return CompareAnswer(results=results, model_version=answer.model_version)

    @router.get("/v1/model", name="GetModel", summary="What is served")
    async def model() -> Model:
        """Says which model gives the rewards, and how much one call may send."""
        return _model(core)

    @router.get("/v1/report", name="GetReport", summary="How rewards develop")
    async def report() -> ReportAnswer:
        """Says how rewards have developed, by model version and caller: signs of reward hacking."""
        # In a thread: with many callers there is much to work out.
        reports = await asyncio.to_thread(core.report)
        return ReportAnswer(reports=[RewardReport.model_validate(each, from_attributes=True) for each in reports])

    @router.post("/v1/load_model", name="LoadModel", summary="Serve other weights (scope admin)")
    async def load_model(body: LoadModelBody) -> LoadModelAnswer:
        """Loads a model beside the present one, tries it, and swaps the two; whatever fails, the present one stays."""
        loaded = await core.load_model(body.model_paths, body.component)
        return LoadModelAnswer.model_validate(loaded, from_attributes=True)

    return router


def _model(core: RewardCore) -> Model:
    info, limits = core.info, core.limits
    return Model(
        model_name=info.name,
        model_version=info.version,
        tokenizer_digest=info.tokenizer_digest,
        max_sequence_tokens=info.max_sequence_tokens,
        max_items=limits.max_items,
        max_text_characters=limits.max_text_characters,
        logit_scale=info.logit_scale,
    )


def _result(item_id: str, outcome: Outcome) -> RewardResult | ErrorResult:
    if isinstance(outcome, ScoreError):
        return _error(item_id, outcome)
    if not isinstance(outcome, Score):
        return RewardResult(item_id=item_id, reward=outcome)
    components = [ComponentReward.model_validate(part, from_attributes=True) for part in outcome.components]
    return RewardResult(item_id=item_id, reward=outcome.reward, spread=outcome.spread, components=components)


def _compared(item_id: str, outcome: ComparisonOutcome) -> ComparisonResult | ErrorResult:
    if isinstance(outcome, ScoreError):
        return _error(item_id, outcome)
    return ComparisonResult(
        item_id=item_id,
        probability=outcome.probability,
        first_reward=outcome.first_reward,
        second_reward=outcome.second_reward,
    )


def _error(item_id: str, error: ScoreError) -> ErrorResult:
    return ErrorResult(item_id=item_id, error=ItemError(code=error.code.name.lower(), message=error.message))
