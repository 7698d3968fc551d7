"""The last leg of a push where the model lives in this process: from the staged file into its tensors."""

import torch
from transformers import PreTrainedModel

from rlhf.errors import InvalidRequestError
from rlhf.models.weights import load_tensors
from services.policy.weights.staged import StagedPatch, StagedWeights
from services.policy.weights.tensors import map_tensors


def load_staged(model: PreTrainedModel, staged: StagedWeights) -> None:
    """Replaces all of a model's weights, in place. Raises: InvalidRequestError, before anything is changed."""
    tensors = staged.manifest.tensors
    dtypes, shapes = [info.dtype for info in tensors], [info.shape for info in tensors]
    views = map_tensors(staged.path, staged.num_bytes, dtypes, shapes, staged.offsets)
    load_tensors(model, zip((info.name for info in tensors), views, strict=True))


def patch_model(model: PreTrainedModel, patch: StagedPatch) -> None:
    """Writes the elements that changed, in place. Raises: InvalidRequestError, before anything is changed."""
    own = model.state_dict()
    if unknown := next((each.info.name for each in patch.tensors if each.info.name not in own), None):
        raise InvalidRequestError(f"tensors has '{unknown}', which the model has not; push a checkpoint of this model")
    if not patch.tensors:
        return
    counts = [(each.num_changed,) for each in patch.tensors]
    indices = map_tensors(
        patch.path, patch.num_bytes, ["I64"] * len(counts), counts, [each.index_offset for each in patch.tensors]
    )
    dtypes = [each.info.dtype for each in patch.tensors]
    values = map_tensors(patch.path, patch.num_bytes, dtypes, counts, [each.value_offset for each in patch.tensors])
    with torch.no_grad():
        for each, at, new in zip(patch.tensors, indices, values, strict=True):
            parameter = own[each.info.name]
            parameter.view(-1).index_copy_(0, at.to(parameter.device), new.to(parameter.device))
