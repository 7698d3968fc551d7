"""Configuration of the reward service."""

from pydantic import Field, field_validator

from rlhf.config import KIND, Port, Section
from rlhf.serving.batching.limits import BatchLimitsConfig
from rlhf.serving.config import HttpConfig, ServerConfig
from rlhf.serving.directory import REWARD
from services.reward.scorers.config import ScorerConfig
from services.reward.watch.report import WatchConfig


class RewardServerConfig(ServerConfig):
    """Where the reward service listens."""

    port: Port = REWARD.port
    """gRPC port; 0 takes a free one."""
    metrics_port: Port = REWARD.metrics_port
    """HTTP port of Prometheus' /metrics; 0 takes a free one."""


class LimitsConfig(BatchLimitsConfig):
    """How much is accepted, as texts too, and how it is batched."""

    max_text_characters: int = Field(default=1_000_000, ge=1)
    """Longest prompt and completion together that is accepted as text."""


class RewardHttpConfig(HttpConfig):
    """Where the same service is found over HTTP and JSON (docs/reward_http.md)."""

    port: Port = REWARD.http_port or 0
    """HTTP port; 0 takes a free one."""


class ModelsConfig(Section):
    """What LoadModel may load."""

    allowed_roots: list[str] = Field(default=[])
    """Folders below which a checkpoint may lie; without one every LoadModel is refused."""

    @field_validator("allowed_roots")
    @classmethod
    def _require_absolute(cls, value: list[str]) -> list[str]:
        for root in value:
            if not root.startswith("/"):
                raise ValueError(f"'{root}' is not an absolute path; write it from the root folder on")
        return value


class RewardConfig(Section):
    """Serves rewards over gRPC and HTTP."""

    server: RewardServerConfig = RewardServerConfig()
    scorer: ScorerConfig = Field(discriminator=KIND)
    limits: LimitsConfig = LimitsConfig()
    http: RewardHttpConfig = RewardHttpConfig()
    models: ModelsConfig = ModelsConfig()
    watch: WatchConfig = WatchConfig()
