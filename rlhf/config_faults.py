"""What is wrong with a configuration, in words: the dotted path, the value, where it came from, the remedy."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel


def explain_fault(
    cls: type[BaseModel], loc: tuple[int | str, ...], fault: dict[str, Any], sources: Mapping[str, Mapping[str, Any]]
) -> str:
    """Returns one line on one fault: where it came from, the dotted path, the value, the remedy."""
    path = ".".join(map(str, loc))
    if fault["type"] == "missing":
        names = " and ".join(_required(cls, loc))
        # An entry of a list has no flag of its own.
        flag = "" if any(isinstance(part, int) for part in loc) else f" or as --{names.split()[0]}"
        return f"{names} is required: set it in the TOML file{flag}"
    origin = next((name for name, values in reversed(list(sources.items())) if _has(values, loc)), "")
    prefix = f"{origin}: " if origin else ""
    if fault["type"] == "extra_forbidden":
        section = _section_at(cls, loc[:-1])
        known = section.model_fields if section else ()
        return f"{prefix}unknown key '{path}'{suggestion(str(loc[-1]), known)}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    verb = "it should be " if fault["msg"].startswith("Input should be ") else ""
    # A section is not shown whole: the message says which of its keys it is about.
    value = fault["input"]
    shown = not isinstance(value, Mapping | BaseModel) and not (isinstance(value, list) and _holds_sections(value))
    subject = f"{path} is {value!r}; " if path and shown else f"{path}: " if path else ""
    return f"{prefix}{subject}{verb}{message}"


def _required(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Returns the dotted paths that must be given at a missing place: the place itself, or a section's own fields."""
    section = _section_at(cls, loc)
    path = ".".join(map(str, loc))
    if section is None:
        return [path]
    return [f"{path}.{name}" for name, field in section.model_fields.items() if field.is_required()]


def _holds_sections(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping | BaseModel) for value in values)


def _has(values: Mapping[str, Any], loc: tuple[int | str, ...]) -> bool:
    value: Any = values
    for part in loc:
        if not isinstance(value, Mapping) or part not in value:
            return isinstance(value, list)
        value = value[part]
    return True


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for a near miss of a known word, else "; known: 'a', 'b'"."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(repr(each) for each in words)}"


def section_of(cls: type[BaseModel], field: str, *, in_list: bool = False) -> type[BaseModel] | None:
    """Returns the class of a field that is a section, or may be one, or (in_list) is a list of them; else None."""
    annotation = cls.model_fields[field].annotation
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return None if get_origin(annotation) is list and not in_list else each
    return None


def _section_at(cls: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """Returns the class of the section at a place, entries of lists counted; None if there is none."""
    section: type[BaseModel] | None = cls
    for part in loc:
        if isinstance(part, str):
            known = section is not None and part in section.model_fields
            section = section_of(section, part, in_list=True) if section is not None and known else None
    return section
