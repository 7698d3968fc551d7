"""Configuration written as TOML, to be read again by load_config."""

import json
from collections.abc import Mapping
from pathlib import Path

from rlhf.config import Section


def write_config(path: Path, config: Section) -> None:
    """Writes the values that were set, and none that is a default."""
    path.write_text(to_toml(config.model_dump(mode="json", exclude_unset=True, exclude_none=True)), encoding="utf-8")


def to_toml(values: Mapping[str, object], prefix: str = "") -> str:
    """Returns plain values, lists of them, and sections, nested ones too, as TOML."""
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    text = "".join(f"{line}\n" for line in lines)
    for key, value in values.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{_key(key)}"
            text += f"{chr(10) if text else ''}[{name}]\n{to_toml(value, f'{name}.')}"
    return text


def _key(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "_").isidentifier()
    return key if is_bare else json.dumps(key)


def _value(value: object) -> str:
    """Returns a value as TOML; JSON's strings, numbers, booleans and lists are TOML's too."""
    return json.dumps(value, ensure_ascii=False)
