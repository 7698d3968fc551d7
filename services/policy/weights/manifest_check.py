"""Whether a push would bring exactly the tensors of the model that is served."""

from rlhf.errors import InvalidRequestError
from rlhf.weights import WeightsManifest


def check_manifest(pushed: WeightsManifest, served: WeightsManifest, weights_digest: str) -> None:
    """Checks that a push would bring exactly the tensors that the engine serves.

    Args:
        pushed: what the header announces; the order of its tensors is free.
        served: what the engine loaded.
        weights_digest: of the whole, as the header says.
    Raises: InvalidRequestError naming the first tensor that is double, extra, missing, misshapen or of another dtype.
    """
    if len(pushed.by_name) != len(pushed.tensors):
        names = [info.name for info in pushed.tensors]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequestError(f"tensors names '{twice}' twice; send each tensor once")
    for info in pushed.tensors:
        expected = served.by_name.get(info.name)
        if expected is None:
            raise InvalidRequestError(
                f"tensors has '{info.name}', which the served model does not have; name exactly the model's tensors, "
                "tied ones once"
            )
        if (info.shape, info.dtype) != (expected.shape, expected.dtype):
            raise InvalidRequestError(
                f"tensor '{info.name}' is {info.dtype} {list(info.shape)}; "
                f"the served model has {expected.dtype} {list(expected.shape)} there"
            )
    missing = [info.name for info in served.tensors if info.name not in pushed.by_name]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InvalidRequestError(f"tensors lacks '{missing[0]}'{others}; a full push names every tensor of the model")
    if pushed.digest != weights_digest:
        raise InvalidRequestError(
            f"weights_digest is '{weights_digest}', the header's tensors give '{pushed.digest}'; "
            "compute it as policy.proto says"
        )
