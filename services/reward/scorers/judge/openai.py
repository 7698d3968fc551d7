"""A judge behind an endpoint of the OpenAI chat completions API, such as vLLM's."""

import asyncio
import logging
import os
from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

from rlhf.errors import ConfigError
from services.reward.scorers.judge.config import JudgeConfig
from services.reward.scorers.judge.questions import FirstTokens, Question
from services.reward.scorers.scorer import ErrorCode, ScoreError, ScorerError

MAX_ERROR_CHARACTERS = 300
_OUR_FAULT = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


class OpenAiBackend:
    """Implements JudgeBackend of judge/questions.py."""

    def __init__(self, config: JudgeConfig) -> None:
        """Raises: ConfigError if the key is missing, or the endpoint has a secret in it."""
        self._config = config
        self._key = _read_key(config)
        self._client: openai.AsyncOpenAI
        self._slots: asyncio.Semaphore

    async def connect(self) -> str:
        """Opens the client; nothing is asked yet, and the API does not say which weights are served."""
        # They log every request, some with its texts; what goes wrong is in the items' errors.
        for name in ("openai", "httpx", "httpcore", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        config = self._config
        self._client = openai.AsyncOpenAI(
            base_url=config.endpoint,
            api_key=self._key or "none",
            max_retries=config.max_retries,
            timeout=config.timeout_seconds,
        )
        self._slots = asyncio.Semaphore(config.max_concurrency)
        return ""

    async def ask(self, questions: Sequence[Question]) -> list[FirstTokens | ScoreError]:
        """Returns the likeliest first tokens of each answer; see JudgeBackend.ask."""
        tasks = [asyncio.create_task(self._ask(question)) for question in questions]
        try:
            return await asyncio.gather(*tasks)
        finally:
            # Where the endpoint is away, the other questions would only wait for it in turn.
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    async def _ask(self, question: Question) -> FirstTokens | ScoreError:
        async with self._slots:
            try:
                async with asyncio.timeout(self._config.timeout_seconds):
                    answer = await self._complete(question)
            except (TimeoutError, openai.APITimeoutError):
                seconds = self._config.timeout_seconds
                return self._error(ErrorCode.TIMEOUT, f"took longer than judge.timeout_seconds = {seconds:g}")
            except openai.APIStatusError as error:
                return self._refused(error)
            except openai.APIConnectionError as error:
                reason = self._clean(str(error.__cause__ or error))
                raise ScorerError(ErrorCode.UNAVAILABLE, f"{self._where} cannot be reached: {reason}") from None
            except (openai.OpenAIError, ValueError) as error:
                return self._error(ErrorCode.SCORER_FAILED, f"answered what is no completion: {error}")
        return self._read(answer)

    async def _complete(self, question: Question) -> ChatCompletion:
        return await self._client.chat.completions.create(
            model=self._config.model,
            messages=[{"role": "user", "content": question.text}],
            max_tokens=1,
            # Some servers report probabilities after the temperature, others before: at 1 they are the same.
            temperature=1.0,
            top_p=1.0,
            logprobs=True,
            top_logprobs=self._config.top_logprobs,
        )

    def _refused(self, error: openai.APIStatusError) -> ScoreError:
        reason = f"answered {error.status_code}: {self._clean(error.message)}"
        if error.status_code in _OUR_FAULT:
            # So it is for every item, until somebody mends the key or the model's name.
            raise ScorerError(
                ErrorCode.UNAVAILABLE, f"{self._where} {reason}; check judge.endpoint, model and api_key_variable"
            )
        busy = error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status_code in (
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.REQUEST_TIMEOUT,
        )
        return self._error(ErrorCode.UNAVAILABLE if busy else ErrorCode.SCORER_FAILED, reason)

    def _read(self, answer: ChatCompletion) -> FirstTokens | ScoreError:
        try:
            logprobs = answer.choices[0].logprobs
            content = logprobs.content if logprobs is not None else None
            tokens = content[0].top_logprobs if content else []
            first_tokens = [(str(token.token), float(token.logprob)) for token in tokens]
        except (AttributeError, IndexError, TypeError, ValueError):  # the library takes what it is sent unchecked
            return self._error(ErrorCode.SCORER_FAILED, "answered what is no completion; check judge.endpoint")
        if not first_tokens:
            return self._error(ErrorCode.SCORER_FAILED, "sent no top_logprobs; use a model and server that give them")
        return FirstTokens(first_tokens, is_likeliest=True)

    @property
    def _where(self) -> str:
        return f"the judge {self._config.model} at {self._config.endpoint}"

    def _error(self, code: ErrorCode, reason: str) -> ScoreError:
        return ScoreError(code, f"{self._where} {self._clean(reason)}")

    def _clean(self, text: str) -> str:
        """Returns an endpoint's words, shortened, and without the key, which some repeat."""
        text = text.replace(self._key, "...") if self._key else text
        return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:MAX_ERROR_CHARACTERS]}..."


def _read_key(config: JudgeConfig) -> str:
    url = urlsplit(config.endpoint)
    if url.username or url.password or url.query:
        # Not repeated here: the endpoint stands in the model's name and in errors, so it must hold no secret.
        raise ConfigError(
            "scorer.judge.endpoint has a user, a password or a query; put the key into an environment variable, and "
            "its name into scorer.judge.api_key_variable"
        )
    if not config.api_key_variable:
        return ""
    key = os.environ.get(config.api_key_variable, "")
    if not key:
        raise ConfigError(
            f"scorer.judge.api_key_variable is '{config.api_key_variable}': there is no such environment variable, or "
            "it is empty; set it to the endpoint's key"
        )
    return key
