"""Configuration of the policy service."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rlhf.config import Port, Section
from rlhf.serving.config import ServerConfig
from rlhf.serving.directory import POLICY


class PolicyServerConfig(ServerConfig):
    """Where the policy service listens."""

    port: Port = POLICY.port
    """gRPC port; 0 takes a free one."""
    metrics_port: Port = POLICY.metrics_port
    """HTTP port of Prometheus' /metrics; 0 takes a free one."""
    slow_call_seconds: float = Field(default=120.0, ge=0)
    """A call that takes longer is logged with its method and caller; 0 logs none."""


class ModelConfig(Section):
    """Which model is sampled, and by which engine."""

    path: Path
    """Directory of a Hugging Face checkpoint with its tokenizer."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of the served weights; a push must bring the same."""
    max_sequence_tokens: int | None = Field(default=None, ge=2)
    """Most tokens of prompt and completion together. Absent: what the model takes, but at most 2048."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """What samples: vLLM, or plain transformers for tests and for machines without vLLM."""

    @field_validator("path")
    @classmethod
    def _is_checkpoint(cls, path: Path) -> Path:
        if not path.is_dir():
            raise ValueError("no such directory; give that of a Hugging Face checkpoint")
        if not (path / "config.json").is_file():
            raise ValueError("it has no config.json; give the directory of a Hugging Face checkpoint")
        return path


class VllmConfig(Section):
    """How vLLM runs. Ignored by the transformers engine."""

    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for keys and values on a CPU, in GiB. On GPUs gpu_memory_utilization decides."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory for weights, keys and values."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that one copy of the model is spread over."""
    max_num_seqs: int = Field(default=128, ge=1)
    """Most completions sampled at once; the others wait inside the engine."""
    enforce_eager: bool | None = None
    """Skip compilation and graph capture. Absent: only on a CPU, where they cost a minute and bring little."""
    cpu_cores: str = ""
    """Cores that sample on a CPU, such as "0-5"; empty takes all that the process may use."""
    cpu_weights: Literal["packed", "in_place"] = "packed"
    """What linear layers compute with on a CPU. "packed": copies laid out for its kernels, which sample faster and are
    built anew in every push. "in_place": the weights themselves; pushes pause sampling for less."""
    start_timeout_seconds: int = Field(default=600, ge=1)
    """How long the engine may take to load."""
    call_timeout_seconds: float = Field(default=120.0, gt=0)
    """How long any one step of a weight push may take inside the engine."""
    probe_seconds: float = Field(default=5.0, gt=0)
    """Pause between two probes for a stuck engine."""
    probe_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long a probe may go unanswered; it waits for the engine's present step, such as a long prefill."""
    max_missed_probes: int = Field(default=3, ge=1)
    """Probes missed in a row before the engine counts as stuck and requests fail."""


class TransformersConfig(Section):
    """How the transformers engine runs. Ignored by vLLM."""

    max_num_seqs: int = Field(default=128, ge=1)
    """Most completions sampled at once; the others wait. With 1 no completion depends on what else is being sampled,
    not even in its last bits: what a run needs that must be resumed exactly (docs/resume.md)."""


class LimitsConfig(Section):
    """What one caller may ask for."""

    max_prompts: int = Field(default=512, ge=1)
    """Most prompts in one Generate call."""
    max_in_flight: int = Field(default=2048, ge=1)
    """Most completions being sampled or waiting, over all calls; above it calls are refused at once."""
    max_chunk_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Largest piece of a weight push."""
    push_idle_seconds: float = Field(default=60.0, gt=0)
    """How long a weight push may send nothing before it is given up, so that it cannot block the next one."""
    push_silence_seconds: float = Field(default=2.0, gt=0)
    """A weight push that has sent nothing for so long is given up at once if another one comes."""
    relay_patience_seconds: float = Field(default=5.0, gt=0)
    """How long a replica to which a push is relayed may leave health checks unanswered before it is left out."""
    takes_patches: bool = True
    """Take pushes of what changed alone. It costs a copy of the weights in memory; without it they must be whole."""


class PolicyConfig(Section):
    """The policy service: samples completions and takes new weights while it serves."""

    server: PolicyServerConfig = PolicyServerConfig()
    model: ModelConfig
    vllm: VllmConfig = VllmConfig()
    transformers: TransformersConfig = TransformersConfig()
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _chunks_fit_messages(self) -> Self:
        chunk, message = self.limits.max_chunk_bytes, self.server.max_message_bytes
        if chunk + 1024 > message:  # the rest of a chunk's message takes a few bytes
            raise ValueError(
                f"limits.max_chunk_bytes is {chunk}, more than server.max_message_bytes ({message}) less 1024 lets "
                "through; lower the one or raise the other"
            )
        return self
