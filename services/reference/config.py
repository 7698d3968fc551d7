"""Configuration of the reference service."""

from typing import Literal

from pydantic import Field

from rlhf.config import Port, Section
from rlhf.serving.batching.limits import BatchLimitsConfig
from rlhf.serving.config import ServerConfig
from rlhf.serving.directory import REFERENCE


class ReferenceServerConfig(ServerConfig):
    """Where the reference service listens."""

    port: Port = REFERENCE.port
    """gRPC port; 0 takes a free one."""
    metrics_port: Port = REFERENCE.metrics_port
    """HTTP port of Prometheus' /metrics; 0 takes a free one."""


class ModelConfig(Section):
    """The frozen reference policy."""

    path: str
    """Directory of a transformers causal language model with its tokenizer."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of its weights; the policy's, so that the KL is 0 before training."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (cuda if there is one), cpu, cuda or cuda:N."""


class ReferenceConfig(Section):
    """Serves log-probabilities under the reference policy over gRPC."""

    server: ReferenceServerConfig = ReferenceServerConfig()
    model: ModelConfig
    limits: BatchLimitsConfig = BatchLimitsConfig()
