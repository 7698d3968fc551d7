"""Configuration of the reference service."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from rlhf_services.common.config import Port, Section, ServerConfig


class ReferenceServerConfig(ServerConfig):
    """Where the reference service listens."""

    port: Port = 50053
    """gRPC port; 0 takes a free one."""
    metrics_port: Port = 9053
    """HTTP port of Prometheus' /metrics; 0 takes a free one."""


class ModelConfig(Section):
    """The frozen reference policy."""

    path: str
    """Directory of a transformers causal language model with its tokenizer."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of its weights; the policy's, so that the KL is 0 before training."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (cuda if there is one), cpu, cuda or cuda:N."""


class LimitsConfig(Section):
    """How much is accepted, and how it is batched."""

    max_items: int = Field(default=1024, ge=1)
    """Most items in one call."""
    max_queue_items: int = Field(default=8192, ge=1)
    """Most items that wait; what comes past it is refused at once. At least max_items."""
    max_batch_tokens: int = Field(default=8192, ge=1)
    """Most tokens of one forward pass, padding included; a longer sequence goes alone."""
    stuck_after_seconds: float = Field(default=120.0, gt=0)
    """A batch that takes longer turns readiness off until it ends."""

    @field_validator("max_queue_items")
    @classmethod
    def _hold_a_call(cls, value: int, info: ValidationInfo) -> int:
        max_items = info.data.get("max_items", 0)
        if value < max_items:
            raise ValueError(f"a call of limits.max_items = {max_items} would never fit; make it at least that")
        return value


class ReferenceConfig(Section):
    """Serves log-probabilities under the reference policy over gRPC."""

    server: ReferenceServerConfig = ReferenceServerConfig()
    model: ModelConfig
    limits: LimitsConfig = LimitsConfig()
