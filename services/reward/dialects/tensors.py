"""Tensors of the KServe inference protocol, version 2, as Triton speaks it over HTTP: in JSON, or binary behind it."""

import json
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field

from rlhf.errors import InvalidRequestError

MAX_DIMENSIONS = 8


class TensorParameters(BaseModel):
    """How a tensor travels. Other parameters are not read."""

    model_config = ConfigDict(strict=True)

    binary_data_size: int | None = Field(default=None, ge=0)
    binary_data: bool = False
    shared_memory_region: str | None = None


class InputTensor(BaseModel):
    """A tensor of a request."""

    model_config = ConfigDict(strict=True)

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MAX_DIMENSIONS)]
    datatype: str
    parameters: TensorParameters = TensorParameters()
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """A tensor that is asked for."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: TensorParameters = TensorParameters()


class RequestParameters(BaseModel):
    """Parameters of a request. Other ones are not read."""

    model_config = ConfigDict(strict=True)

    binary_data_output: bool = False


class InferBody(BaseModel):
    """The JSON of a request; binary tensors follow it, in the order of `inputs`."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {
                            "name": "sentences",
                            "shape": [1, 1],
                            "datatype": "BYTES",
                            "data": ["<|user|>\nHow are you?</s>\n<|assistant|>\nFine."],
                        }
                    ]
                }
            ]
        },
    )

    id: str = ""
    inputs: Annotated[list[InputTensor], FailFast()]
    outputs: Annotated[list[RequestedOutput], FailFast()] = []
    parameters: RequestParameters = RequestParameters()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: its elements in row-major order, integers or texts, and its shape."""

    shape: tuple[int, ...]
    elements: NDArray[np.int64] | list[str]


def tensors_of(body: InferBody, binary: bytes) -> dict[str, Tensor]:
    """Returns the request's tensors by name. Raises: InvalidRequestError naming the tensor and what is wrong."""
    tensors: dict[str, Tensor] = {}
    offset = 0
    for tensor in body.inputs:
        if tensor.name in tensors:
            raise InvalidRequestError(f"input '{tensor.name[:64]}' is there twice; send it once")
        size = tensor.parameters.binary_data_size
        if tensor.parameters.shared_memory_region is not None:
            raise _fault(tensor, "lies in shared memory, which is not offered; send its data")
        if (size is None) == (tensor.data is None):
            raise _fault(tensor, "needs either data or parameters.binary_data_size; send one of the two")
        if size is None:
            tensors[tensor.name] = Tensor(tuple(tensor.shape), _from_json(tensor))
            continue
        if size > len(binary) - offset:
            raise _fault(tensor, f"has binary_data_size {size}, but {len(binary) - offset} bytes are left in the body")
        tensors[tensor.name] = Tensor(tuple(tensor.shape), _from_bytes(tensor, binary[offset : offset + size]))
        offset += size
    if offset != len(binary):
        raise InvalidRequestError(
            f"{len(binary) - offset} bytes of the body belong to no tensor; mend the binary_data_size of the inputs, "
            "or the header inference-header-content-length"
        )
    return tensors


def float_output(name: str, values: list[float], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """Returns a column of FP32 as a response has it: its JSON, and the bytes that follow if it is binary."""
    output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": [len(values), 1]}
    if not binary:
        return {**output, "data": values}, b""
    raw = np.asarray(values, dtype="<f4").tobytes()
    return {**output, "parameters": {"binary_data_size": len(raw)}}, raw


def _from_json(tensor: InputTensor) -> NDArray[np.int64] | list[str]:
    flat = _flat(tensor.data or [], len(tensor.shape))
    _require_count(tensor, len(flat))
    if tensor.datatype == "BYTES":
        if not all(isinstance(each, str) for each in flat):
            raise _fault(tensor, "has data that is no text; send strings")
        return flat
    if tensor.datatype == "INT64":
        if not all(type(each) is int and abs(each) < 2**63 for each in flat):
            raise _fault(tensor, "has data that is no 64-bit integer; send integers")
        return np.asarray(flat, dtype=np.int64)
    raise _wrong_type(tensor)


def _flat(data: list[Any], depth: int) -> list[Any]:
    """Returns the elements of lists in lists, which are no deeper than the tensor has dimensions."""
    while depth > 1 and any(isinstance(each, list) for each in data):
        data = [element for each in data for element in (each if isinstance(each, list) else [each])]
        depth -= 1
    return data


def _from_bytes(tensor: InputTensor, raw: bytes) -> NDArray[np.int64] | list[str]:
    if tensor.datatype == "BYTES":
        texts = _texts_of(tensor, raw)
        _require_count(tensor, len(texts))
        return texts
    if tensor.datatype == "INT64":
        if len(raw) % 8:
            raise _fault(tensor, f"has {len(raw)} bytes, no multiple of 8; send little-endian 64-bit integers")
        _require_count(tensor, len(raw) // 8)
        return np.frombuffer(raw, dtype="<i8").astype(np.int64, copy=False)
    raise _wrong_type(tensor)


def _texts_of(tensor: InputTensor, raw: bytes) -> list[str]:
    """Returns the elements, each of which follows its length in 4 bytes, little-endian."""
    texts: list[str] = []
    offset = 0
    while offset < len(raw):
        if len(raw) - offset < 4:
            raise _fault(tensor, f"ends within a length, at byte {offset}; send 4 bytes of length before each element")
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if length > len(raw) - offset:
            raise _fault(tensor, f"has an element of {length} bytes where {len(raw) - offset} are left; mend it")
        try:
            texts.append(raw[offset : offset + length].decode())
        except UnicodeDecodeError:
            raise _fault(tensor, f"has an element, number {len(texts)}, that is not UTF-8; send text") from None
        offset += length
    return texts


def _require_count(tensor: InputTensor, num_elements: int) -> None:
    needed = 1
    for dimension in tensor.shape:
        needed *= dimension
    if needed != num_elements:
        raise _fault(tensor, f"has the shape {tensor.shape} of {needed} elements, but {num_elements} are sent")


def _fault(tensor: InputTensor, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"input '{tensor.name[:64]}' {message}")


def _wrong_type(tensor: InputTensor) -> InvalidRequestError:
    return _fault(tensor, f"has the datatype '{tensor.datatype[:16]}'; send BYTES or INT64, as the model's config says")


def json_size_of(header: str | None, body: bytes) -> int:
    """Returns how many bytes of a body are JSON, by inference-header-content-length. Raises: InvalidRequestError."""
    if header is None:
        return len(body)
    if not (header.isascii() and header.isdigit() and int(header[:20]) <= len(body)):
        raise InvalidRequestError(
            f"inference-header-content-length is {json.dumps(header[:32])}; send how many of the body's {len(body)} "
            "bytes are JSON"
        )
    return int(header)
