"""How long a sequence a model can take."""

import sys
from pathlib import Path

from transformers import AutoConfig


def max_positions(path: Path) -> int:
    """Returns the tokens that the model in a folder has positions for; a great many if it does not say."""
    config = AutoConfig.from_pretrained(path, local_files_only=True).get_text_config()
    positions: int | None = getattr(config, "max_position_embeddings", None)
    return sys.maxsize if positions is None else positions
