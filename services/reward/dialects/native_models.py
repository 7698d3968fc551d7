"""The JSON of the service's own routes: field by field that of protos/rlhf/v1/reward.proto."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from services.reward.scorers.scorer import ChatMessage, Conversation, Item, RawPair, TextPair, TokenPair, TokenSequence

INT32_MAX = 2**31 - 1
# FailFast: a million wrong ids make one error, not a million.
Ids = Annotated[list[Annotated[int, Field(ge=-INT32_MAX - 1, le=INT32_MAX)]], FailFast()]


class Message(BaseModel):
    """Base of every message: exact types, no unknown fields, finite numbers, and a docstring under each field."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Text(Message):
    """A prompt and its completion as text; the server applies its chat template."""

    prompt: str
    """What the user said. Not empty."""
    completion: str
    """What the model answered. Not empty."""


class Tokens(Message):
    """A prompt and its completion as token ids of the server's own tokenizer."""

    prompt_ids: Ids
    """After the chat template, without padding."""
    completion_ids: Ids
    """Ends in the end-of-sequence id if the completion is finished."""


class Turn(Message):
    """One message of a conversation."""

    role: str
    """system, user, assistant, or another role that the served model's chat template knows."""
    content: str
    """What is said."""


class Dialogue(Message):
    """A conversation whose last message is scored."""

    messages: Annotated[list[Turn], FailFast()]
    """At least two; the last is the assistant's."""


class Raw(Message):
    """A prompt and its completion after the chat template, special tokens written out."""

    prompt: str = ""
    """What comes before the completion. May be empty where the scorer reads the whole text."""
    completion: str
    """What is scored, with the end-of-sequence token if it is finished. Not empty."""


class Sequence(Message):
    """Prompt and completion as the ids of one sequence."""

    ids: Ids
    """Without padding. At least two."""


class Completion(Message):
    """A completion with its prompt, in exactly one of five forms."""

    item_id: str = ""
    """Echoed in the result."""
    text: Text | None = None
    tokens: Tokens | None = None
    conversation: Dialogue | None = None
    raw: Raw | None = None
    sequence: Sequence | None = None

    @model_validator(mode="after")
    def _require_one_form(self) -> Self:
        forms = [name for name in ("text", "tokens", "conversation", "raw", "sequence") if getattr(self, name)]
        if len(forms) > 1:
            raise ValueError(f"has {' and '.join(forms)}; send one of them")
        return self

    def item(self) -> Item | None:
        """Returns what a scorer is asked; None if there is nothing, which is an error of this item alone."""
        if self.text is not None:
            return TextPair(self.text.prompt, self.text.completion)
        if self.tokens is not None:
            return TokenPair(self.tokens.prompt_ids, self.tokens.completion_ids)
        if self.conversation is not None:
            return Conversation(tuple(ChatMessage(turn.role, turn.content) for turn in self.conversation.messages))
        if self.raw is not None:
            return RawPair(self.raw.prompt, self.raw.completion)
        return None if self.sequence is None else TokenSequence(self.sequence.ids)


class ScoreBody(Message):
    """Completions to score."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {"item_id": "a", "text": {"prompt": "How are you?", "completion": "Fine, thank you."}},
                        {"item_id": "b", "tokens": {"prompt_ids": [1, 42, 7, 2], "completion_ids": [9, 9, 1]}},
                    ]
                }
            ]
        }
    )

    request_id: str = ""
    """Unique among the caller's calls: a call that is repeated with it is computed and counted once."""
    items: Annotated[list[Completion], FailFast()]
    """At least one, at most max_items of /v1/model."""
    tokenizer_digest: str = ""
    """Digest of the tokenizer that made the ids, as /v1/model gives it; another one is refused. Empty: not checked."""


class ComponentReward(Message):
    """One part of a weighted sum."""

    name: str
    weight: float
    reward: float
    """Before it is multiplied by the weight."""
    spread: float | None = None


class ItemError(Message):
    """Why an item has no reward."""

    code: str
    """invalid_item, too_long, not_finite, scorer_failed; or timeout, unavailable, which may be repeated."""
    message: str


class RewardResult(Message):
    """An item's reward."""

    item_id: str
    reward: float
    """Finite; higher is better."""
    spread: float | None = None
    """How far the models of an ensemble disagree; null if there is one scorer."""
    components: list[ComponentReward] = []
    """What a weighted sum is made of."""


class ErrorResult(Message):
    """An item without a reward."""

    item_id: str
    error: ItemError


class ScoreAnswer(Message):
    """One result for each item, in order."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "results": [
                        {"item_id": "a", "reward": 0.75, "spread": None, "components": []},
                        {
                            "item_id": "b",
                            "error": {"code": "invalid_item", "message": "tokens.completion_ids[0] is 999999, ..."},
                        },
                    ],
                    "model_version": "1f0c9a…",
                }
            ]
        }
    )

    results: list[RewardResult | ErrorResult]
    model_version: str
    """The version of the model that gave all of these rewards."""


class ComparisonItem(Message):
    """Two completions, as a rule of one prompt. Their own item_id is not read."""

    item_id: str = ""
    first: Completion
    second: Completion
    margin: float = 0.0
    """By how much, in the model's logits, the first must be ahead to count as equal."""


class CompareBody(Message):
    """Pairs to compare."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "first": {"text": {"prompt": "How are you?", "completion": "Fine, thank you."}},
                            "second": {"text": {"prompt": "How are you?", "completion": "Go away."}},
                        }
                    ]
                }
            ]
        }
    )

    request_id: str = ""
    items: Annotated[list[ComparisonItem], FailFast()]
    """At least one, at most half of max_items."""
    tokenizer_digest: str = ""


class ComparisonResult(Message):
    """How two completions compare."""

    item_id: str
    probability: float
    """That people prefer the first."""
    first_reward: float | None = None
    """Null: a judge that was asked for the pair gives none."""
    second_reward: float | None = None


class CompareAnswer(Message):
    """One result for each pair, in order."""

    results: list[ComparisonResult | ErrorResult]
    model_version: str


class Model(Message):
    """What is served, and its limits."""

    model_name: str
    model_version: str
    tokenizer_digest: str
    max_sequence_tokens: int
    """Most tokens of prompt and completion together; 0: no limit."""
    max_items: int
    """Most items in one call."""
    max_text_characters: int
    """Most characters of one item that is sent as text."""
    logit_scale: float
    """What a difference of rewards is multiplied by to be one of logits."""


class RewardReport(Message):
    """The rewards that one version gave one caller. What is over the window is over its newest items."""

    model_version: str
    caller: str
    item_count: int
    """Rewards given in all."""
    window_item_count: int
    baseline_item_count: int
    """The first items of this caller and version, which the window is compared with."""
    baseline_mean: float | None
    """Null while the baseline is not complete."""
    reward_mean: float
    reward_std: float
    reward_quantiles: tuple[float, float, float]
    """A tenth, half and nine tenths of the window's rewards lie below these."""
    drift: float | None
    """Population stability index of window and baseline; above 0.25 is usually called a shift."""
    length_correlation: float | None
    """Rank correlation of reward and length."""
    repetition_mean: float | None
    """Mean share of n-grams that repeat an earlier one of their completion."""
    spread_mean: float | None
    heldout_gap: float | None
    """How much more the reward has risen than the held-out scorer's, in standard deviations."""
    heldout_correlation: float | None
    warnings: tuple[str, ...]
    """What looks wrong, in sentences."""


class ReportAnswer(Message):
    """One report for each model version and caller, newest version first."""

    reports: list[RewardReport]


class LoadModelBody(Message):
    """Other weights to serve."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_paths": ["/models/reward-2"]}]})

    request_id: str = ""
    model_paths: Annotated[list[str], FailFast()]
    """Folders on the server, below one of its models.allowed_roots: one for a model, one a member for an ensemble."""
    component: str = ""
    """Which part of a weighted sum gets them."""


class LoadModelAnswer(Message):
    """The swap is done."""

    model_version: str
    previous_model_version: str
    load_seconds: float
