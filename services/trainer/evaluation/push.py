"""Has a running policy service serve a checkpoint: seconds, where starting another service takes a minute."""

from collections.abc import Iterator
from pathlib import Path

from rlhf.client.policy import PolicyClient
from rlhf.errors import ConfigError
from rlhf.models.loading import DtypeName, load_policy
from rlhf.models.weights import checkpoint_tensors, model_manifest, tensor_bytes
from rlhf.weights import PushHeader

DTYPES: dict[str, DtypeName] = {"BF16": "bfloat16", "F32": "float32"}
"""By the name that a policy service reports."""


async def push_checkpoint(target: str, checkpoint: Path, *, deadline_seconds: float = 600.0) -> None:
    """Pushes a checkpoint's weights to the policy service at the target, unless it serves exactly these already.

    Raises: ConfigError if its element type is not one that can be loaded; ServiceError if the checkpoint is of another
        model, or the service is away.
    """
    async with PolicyClient(target) as policy:
        served = await policy.get_model()
        if served.dtype not in DTYPES:
            raise ConfigError(
                f"the policy service at {target} serves {served.dtype}; start it with bfloat16 or float32"
            )
        model = load_policy(checkpoint, dtype=DTYPES[served.dtype])
        manifest = model_manifest(model)
        if manifest.digest == served.weights_digest:
            return

        def payload() -> Iterator[memoryview]:
            for _, tensor in checkpoint_tensors(model):
                yield tensor_bytes(tensor)

        version = served.policy_version + 1
        await policy.update_weights(PushHeader.full(version, manifest), payload(), deadline_seconds=deadline_seconds)
