"""The directory: every service there is, with its ports, its scopes and its command.

The only such list. Servers, the command line and their defaults read it; what compose files, manifests, images and
monitors must name is checked against it (tests/unit/deploy/test_directory.py says which file lacks what).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ADMIN_SCOPE = "admin"
"""Allows everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A row: what a service is called, and where it is found unless its configuration says otherwise."""

    name: str
    """One lower-case word, such as "policy": that of its folder in services/, its image and its host in a cluster."""
    purpose: str
    """What it does, in a sentence."""
    port: int
    """gRPC port."""
    metrics_port: int
    """HTTP port of Prometheus' /metrics."""
    http_port: int | None = None
    """HTTP port of the same service; None if it speaks gRPC alone."""
    scope_of_method: Mapping[str, str]
    """The scope that a caller needs, by gRPC method."""
    is_run: bool = False
    """Lives as long as one training run, which brings its configuration: `rlhf submit` makes its pods."""

    @property
    def full_name(self) -> str:
        """The gRPC service's full name, such as "rlhf.v1.PolicyService"."""
        return f"rlhf.v1.{self.name.capitalize()}Service"

    @property
    def command(self) -> str:
        """The command that serves it, such as "rlhf-policy"."""
        return f"rlhf-{self.name}"

    @property
    def module(self) -> str:
        """The same for `python -m`, such as "services.policy.server"."""
        return f"services.{self.name}.server"

    @property
    def env_prefix(self) -> str:
        """What the variables of its configuration begin with, such as "RLHF_POLICY"."""
        return f"RLHF_{self.name.upper()}"

    @property
    def local_target(self) -> str:
        """Where it is on this machine."""
        return f"localhost:{self.port}"


POLICY = Service(
    name="policy",
    purpose="Samples completions with vLLM and takes new weights while it serves.",
    port=50051,
    metrics_port=9051,
    scope_of_method=MappingProxyType({"Generate": "generate", "GetModel": "generate", "UpdateWeights": ADMIN_SCOPE}),
)
REWARD = Service(
    name="reward",
    purpose="Scores completions with a reward model, an ensemble or a rule.",
    port=50052,
    metrics_port=9052,
    http_port=8052,
    scope_of_method=MappingProxyType(
        {"Score": "score", "Compare": "score", "GetModel": "score", "GetReport": "score", "LoadModel": ADMIN_SCOPE}
    ),
)
REFERENCE = Service(
    name="reference",
    purpose="Log-probabilities of completions under the frozen reference policy.",
    port=50053,
    metrics_port=9053,
    scope_of_method=MappingProxyType({"ComputeLogprobs": "score", "GetModel": "score"}),
)
TRAINER = Service(
    name="trainer",
    purpose="Trains language models from preferences and rewards: rlhf train.",
    port=50054,
    metrics_port=9054,
    scope_of_method=MappingProxyType(
        {
            "GetRun": "watch",
            "WatchRun": "watch",
            "Pause": ADMIN_SCOPE,
            "Resume": ADMIN_SCOPE,
            "SaveCheckpoint": ADMIN_SCOPE,
            "Stop": ADMIN_SCOPE,
        }
    ),
    is_run=True,
)

SERVICES: Mapping[str, Service] = MappingProxyType(
    {service.name: service for service in (POLICY, REWARD, REFERENCE, TRAINER)}
)
"""By name."""
SCOPES = frozenset({ADMIN_SCOPE}).union(*(service.scope_of_method.values() for service in SERVICES.values()))
"""All that a client may be given."""
