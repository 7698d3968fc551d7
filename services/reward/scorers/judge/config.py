"""How a generative judge is configured."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from rlhf.config import Section

DEFAULT_RUBRIC = "The answer is correct, helpful and honest, does what was asked, and says no more than that needs."


class JudgeConfig(Section):
    """A language model that is asked whether an answer is good; its probability of "Yes" is the reward."""

    backend: Literal["openai", "policy"] = "openai"
    """openai: an endpoint of the OpenAI chat completions API, such as vLLM's; policy: a policy service of our own."""
    endpoint: str = ""
    """openai: the URL up to /v1, such as http://judge:8000/v1; policy: host:port."""
    model: str = ""
    """openai: the model's name at the endpoint."""
    api_key_variable: str = ""
    """openai: the environment variable that holds the key; empty: the endpoint asks for none."""
    rubric: str = Field(default=DEFAULT_RUBRIC, min_length=1)
    """What makes an answer good, in words for the judge."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """How long one question may take, repetitions included; policy: one call of up to max_concurrency questions."""
    max_retries: int = Field(default=2, ge=0, le=10)
    """openai: how often a question is repeated that the endpoint refused as busy or failed on."""
    max_concurrency: int = Field(default=16, ge=1)
    """Most questions that the judge has at a time."""
    top_logprobs: int = Field(default=20, ge=2, le=20)
    """openai: how many of the likeliest first tokens are looked at. An answer that is not among them counts as
    impossible."""
    min_answer_probability: float = Field(default=0.1, gt=0, le=1)
    """What the two answers must have together. With less the judge did not answer the question: the item fails."""
    tokenizer: str = ""
    """policy: the folder of the served model's tokenizer, with a chat template."""
    samples: int = Field(default=32, ge=1, le=256)
    """policy: how many first tokens are drawn. Each comes with its exact probability; see max_uncertainty."""
    max_uncertainty: float = Field(default=0.05, gt=0, lt=0.5)
    """policy: how far the reward may be from the exact one, given the probability of all tokens that were not drawn.
    An item of which more is unknown fails."""
    version: str = ""
    """Is part of the model version that every answer names. Change it when the endpoint serves other weights under the
    same name."""

    def require_complete(self) -> None:
        """Returns if there is a judge to ask. Raises: ValueError."""
        if not self.endpoint:
            raise ValueError("kind judge needs an endpoint: --scorer.judge.endpoint http://judge:8000/v1")
        if self.backend == "policy":
            if not self.tokenizer:
                raise ValueError("backend policy needs the folder of the served model's tokenizer: judge.tokenizer")
            return
        if not self.model:
            raise ValueError("backend openai needs the model's name at the endpoint: judge.model")
        url = urlsplit(self.endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"endpoint is '{self.endpoint}'; give a URL such as http://judge:8000/v1")
