"""The rules' rewards by hand, and what rule scorers take."""

import pytest

from services.reward.scorers.rules import Rule, RuleScorer, length_rule, pattern_rule, sentiment_rule
from services.reward.scorers.scorer import (
    ChatMessage,
    Conversation,
    ErrorCode,
    RawPair,
    ScoreError,
    TextPair,
    TokenPair,
    TokenSequence,
)


class LetterDecoder:
    """Id 0 is "a", id 25 is "z"."""

    vocab_size = 26
    digest = "letters"

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in ids)

    def without_special_tokens(self, text: str) -> str:
        return text.replace("<end>", "")


def scorer(rule: Rule, *, decoder: LetterDecoder | None = None, max_characters: int | None = None) -> RuleScorer:
    return RuleScorer("length", {"target": 4}, rule, decoder, max_characters)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("abcd", 1.0),
        ("abc", 0.75),  # 1 - |3 - 4| / 4
        ("abcdef", 0.5),  # 1 - |6 - 4| / 4
        ("a" * 12, -1.0),  # 1 - 8 / 4
        ("a" * 1000, -1.0),  # never below -1
    ],
)
def test_length_pays_for_the_target_and_falls_on_both_sides(completion: str, reward: float):
    assert length_rule(4, "characters")(completion) == reward


def test_length_counts_words_if_told():
    assert length_rule(4, "words")("two  words\n") == 0.5  # 1 - |2 - 4| / 4


def test_pattern_match_is_one_or_zero():
    rule = pattern_rule(r"\d+", "match")
    assert [rule("no digit"), rule("7"), rule("1 and 2")] == [0.0, 1.0, 1.0]


def test_pattern_count_counts_matches_up_to_a_hundred():
    rule = pattern_rule("ab", "count")
    assert [rule("b"), rule("ab abab"), rule("ab" * 500)] == [0.0, 3.0, 100.0]


def test_sentiment_is_positive_for_praise_negative_for_blame_and_bounded():
    rule = sentiment_rule()
    assert 0.5 < rule("What a wonderful, happy day!") <= 1
    assert -1 <= rule("This is terrible and sad.") < -0.5
    assert rule("The table has four legs.") == 0


def test_text_is_scored_without_a_tokenizer():
    rules = scorer(length_rule(4, "characters"))
    prepared = rules.prepare(TextPair("hello", "abcd"))
    assert isinstance(prepared, str)
    assert rules.score([prepared, "abc"]) == [1.0, 0.75]


def test_of_a_conversation_the_last_message_is_scored():
    rules = scorer(length_rule(4, "characters"))
    messages = (ChatMessage("system", "s"), ChatMessage("user", "hello"), ChatMessage("assistant", "abcd"))
    assert rules.prepare(Conversation(messages)) == "abcd"
    for unfinished in (messages[:2], ()):
        fault = rules.prepare(Conversation(unfinished))
        assert isinstance(fault, ScoreError)
        assert "the last of conversation.messages must be the assistant's" in fault.message


def test_of_raw_text_the_completion_is_scored_without_the_special_tokens_that_are_known():
    raw = RawPair("<user>hello<end>", "abcd<end>")
    assert scorer(length_rule(4, "characters"), decoder=LetterDecoder()).prepare(raw) == "abcd"
    assert scorer(length_rule(4, "characters")).prepare(raw) == "abcd<end>"


def test_a_sequence_of_ids_is_refused_with_the_remedy():
    fault = scorer(length_rule(4, "characters"), decoder=LetterDecoder()).prepare(TokenSequence([1, 2]))
    assert isinstance(fault, ScoreError)
    assert fault.code is ErrorCode.INVALID_ITEM
    assert "send tokens with prompt_ids and completion_ids, or text" in fault.message


def test_tokens_are_decoded_by_the_configured_tokenizer():
    rules = scorer(length_rule(4, "characters"), decoder=LetterDecoder())
    assert rules.prepare(TokenPair([1], [0, 1, 25])) == "abz"
    assert rules.info.tokenizer_digest == "letters"


def test_tokens_without_a_tokenizer_are_an_invalid_item_that_says_what_to_do():
    fault = scorer(length_rule(4, "characters")).prepare(TokenPair([1], [2]))
    assert isinstance(fault, ScoreError)
    assert fault.code is ErrorCode.INVALID_ITEM
    assert "--scorer.tokenizer DIR" in fault.message


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (TokenPair([], [1]), "tokens.prompt_ids is empty"),
        (TokenPair([1], []), "tokens.completion_ids is empty"),
        (TokenPair([1], [2, 26]), r"tokens.completion_ids[1] is 26, outside the vocabulary of 26"),
        (TokenPair([-3], [2]), r"tokens.prompt_ids[0] is -3"),
    ],
)
def test_malformed_tokens_name_field_and_value(pair: TokenPair, message: str):
    fault = scorer(length_rule(4, "characters"), decoder=LetterDecoder()).prepare(pair)
    assert isinstance(fault, ScoreError)
    assert fault.code is ErrorCode.INVALID_ITEM
    assert message in fault.message


def test_a_completion_over_the_rules_limit_is_too_long():
    fault = scorer(length_rule(4, "characters"), max_characters=5).prepare(TextPair("p", "abcdef"))
    assert isinstance(fault, ScoreError)
    assert fault.code is ErrorCode.TOO_LONG
    assert "6 characters" in fault.message
    assert "at most 5" in fault.message


def test_the_version_changes_with_whatever_changes_the_scores():
    rule = length_rule(4, "characters")
    versions = {
        RuleScorer("length", {"target": 4}, rule, None).info.version,
        RuleScorer("length", {"target": 5}, rule, None).info.version,
        RuleScorer("length", {"target": 4}, rule, LetterDecoder()).info.version,
    }
    assert len(versions) == 3
    assert RuleScorer("length", {"target": 4}, rule, None).info.version in versions
