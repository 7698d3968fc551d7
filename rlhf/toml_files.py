"""Writing configuration as TOML files that load_config reads."""

import json
from collections.abc import Mapping
from pathlib import Path

from rlhf.config import Section


def write_config(path: Path, config: Section) -> None:
    """Writes the values that were set; defaults are left out."""
    path.write_text(to_toml(config.model_dump(mode="json", exclude_unset=True, exclude_none=True)), encoding="utf-8")


def to_toml(values: Mapping[str, object], prefix: str = "") -> str:
    """Returns values, lists and nested sections as TOML."""
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
    """Returns a value as TOML. JSON writes strings, numbers, booleans and lists in the same way."""
    return json.dumps(value, ensure_ascii=False)
