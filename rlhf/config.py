"""Configuration from defaults, a TOML file, the environment and flags.

Errors name the dotted path, the value, its origin and the remedy. Unknown keys are errors.
"""

import difflib
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, EnvSettingsSource, SettingsConfigDict, SettingsError

from rlhf.errors import ConfigError

C = TypeVar("C", bound=BaseModel)
Port = Annotated[int, Field(ge=0, le=65535)]
KIND = "kind"
"""The key that selects the section of a field that may have one of several: a discriminated union."""


class Section(BaseModel):
    """Base of every configuration class: immutable, without unknown keys. A field's docstring is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )


def load_config(cls: type[C], *, prog: str, argv: Sequence[str] | None, env_prefix: str) -> C:
    """Returns the configuration of a command from all four sources. Prints help and exits with 0 on --help.

    Args:
        cls: the configuration class.
        prog: the command's name, for help.
        argv: its arguments; None takes those of the process.
        env_prefix: such as "RLHF_POLICY"; the variables are RLHF_POLICY__SERVER__PORT and so on.
    Raises: ConfigError with every fault, one per line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    path, arguments = _take_config_flag(arguments)
    file_values = {} if path is None else _read_toml(path)
    settings = cast(
        type[BaseSettings],
        type(
            cls.__name__,
            (BaseSettings, cls),
            {
                "__doc__": f"{cls.__doc__} Every flag can also stand in a TOML file, named by --config FILE, or in the "
                f"environment as {env_prefix}__SECTION__KEY.",
                "__module__": cls.__module__,
                "model_config": SettingsConfigDict(env_prefix=f"{env_prefix}__", env_nested_delimiter="__"),
            },
        ),
    )
    _refuse_unknown_variables(cls, f"{env_prefix}__")
    try:
        flags: dict[str, Any] = CliSettingsSource(
            settings, cli_parse_args=arguments, cli_prog_name=prog, cli_exit_on_error=False, cli_hide_none_type=True
        )()
        variables: dict[str, Any] = EnvSettingsSource(settings)()
    except SettingsError as error:
        raise ConfigError(_explain_flag_error(str(error), cls, prog)) from None
    sources = {f"{path}": file_values, "the environment": variables, "the flags": flags}
    return _validate(cls, sources)


def load_toml(cls: type[C], path: Path, overrides: Mapping[str, object] | None = None) -> C:
    """Returns the configuration in a TOML file, with nested `overrides` applied. Raises: ConfigError."""
    return _validate(cls, {str(path): _read_toml(path), "the overrides": dict(overrides or {})})


def load_values(cls: type[C], values: Mapping[str, object], source: str) -> C:
    """Returns the configuration in nested values; `source` names their origin in errors. Raises: ConfigError."""
    return _validate(cls, {source: values})


def write_config(path: Path, config: Section) -> None:
    """Writes the values that were set, without defaults, as TOML for load_config. Raises: OSError."""
    values = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    path.write_text(tomli_w.dumps(values), encoding="utf-8")


@contextmanager
def exit_on_config_error(prog: str) -> Iterator[None]:
    """Turns a ConfigError into lines on stderr and exit code 2, for the main of a command."""
    try:
        yield
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"{prog}: {line}", file=sys.stderr)
        raise SystemExit(2) from None


def explain_fault(
    cls: type[BaseModel], loc: tuple[int | str, ...], fault: dict[str, Any], sources: Mapping[str, Mapping[str, Any]]
) -> str:
    """Returns one line for one of pydantic's faults: its origin, the dotted path, the value, the remedy."""
    _, around, kinds = _follow(cls, loc[:-1])
    loc, sections, _ = _follow(cls, loc)
    path = ".".join(map(str, loc))
    origin = next((name for name, values in reversed(list(sources.items())) if _has(values, loc)), "")
    prefix = f"{origin}: " if origin else ""
    match fault["type"]:
        case "missing" | "union_tag_not_found":
            names = " and ".join(_required(path, sections))
            # An entry of a list has no flag of its own.
            flag = "" if any(isinstance(part, int) for part in loc) else f" or as --{names.split()[0]}"
            return f"{names} is required: set it in the TOML file{flag}"
        case "union_tag_invalid":
            return f"{prefix}{path}.{KIND} is '{fault['ctx']['tag']}'; it should be {fault['ctx']['expected_tags']}"
        case "extra_forbidden":
            return prefix + _explain_unknown(path, str(loc[-1]), around, kinds)
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    verb = "it should be " if fault["msg"].startswith("Input should be ") else ""
    # Sections are not printed: the message names the key.
    value = fault["input"]
    shown = not isinstance(value, Mapping | BaseModel) and not (isinstance(value, list) and _holds_sections(value))
    subject = f"{path} is {value!r}; " if path and shown else f"{path}: " if path else ""
    return f"{prefix}{subject}{verb}{message}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for a near miss of a known word, else "; known: 'a', 'b'"."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(repr(each) for each in words)}"


def kinds_of(section: type[BaseModel]) -> tuple[str, ...]:
    """Returns the values of KIND that select a section of a union; none if it has no such key."""
    field = section.model_fields.get(KIND)
    return () if field is None else get_args(field.annotation)


def sections_of(cls: type[BaseModel], field: str, *, in_list: bool = False) -> list[type[BaseModel]]:
    """Returns the classes that a field's section may have, or (in_list) those of its entries; none for other fields."""

    def found(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        if get_origin(annotation) is list and not in_list:
            return []
        return [section for each in get_args(annotation) for section in found(each)]

    return found(cls.model_fields[field].annotation)


def _take_config_flag(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Returns the value of --config, and the arguments without it."""
    for index, argument in enumerate(arguments):
        if argument == "--config":
            if index + 1 == len(arguments):
                raise ConfigError("--config needs the path of a TOML file")
            return Path(arguments[index + 1]), arguments[:index] + arguments[index + 2 :]
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config=")), arguments[:index] + arguments[index + 1 :]
    return None, arguments


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"--config is '{path}': no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from None


def _refuse_unknown_variables(cls: type[BaseModel], prefix: str) -> None:
    """Raises ConfigError if a variable with the prefix names no field, so that no typo is ignored."""
    for variable in os.environ:
        if not variable.upper().startswith(prefix):
            continue
        sections: Sequence[type[BaseModel]] = [cls]
        for part in variable[len(prefix) :].lower().split("__"):
            takers = [section for section in sections if part in section.model_fields]
            if not takers:
                known = {name for section in sections for name in section.model_fields}
                raise ConfigError(f"environment variable {variable}: unknown key '{part}'{suggestion(part, known)}")
            sections = [each for section in takers for each in sections_of(section, part)]


def _validate(cls: type[C], sources: Mapping[str, Mapping[str, Any]]) -> C:
    """Returns the configuration built from the sources; later ones override. Raises: ConfigError with every fault."""
    merged: dict[str, Any] = {}
    for values in sources.values():
        _merge(merged, values)
    try:
        return cls.model_validate(merged)
    except ValidationError as error:
        faults = (explain_fault(cls, fault["loc"], dict(fault), sources) for fault in error.errors())
        raise ConfigError("\n".join(faults)) from None


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _explain_flag_error(message: str, cls: type[BaseModel], prog: str) -> str:
    """Returns the message for a fault in the flags, with a suggestion for an unknown one."""
    message = message.removeprefix("error parsing CLI: ")
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown == message:
        return f"{message}; see {prog} --help"
    word = unknown.split()[0].split("=")[0]
    near = difflib.get_close_matches(word, [f"--{flag}" for flag in _flags(cls)], n=1)
    return f"unknown flag '{word}'" + (f"; did you mean '{near[0]}'?" if near else f"; see {prog} --help")


def _flags(cls: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for field in cls.model_fields:
        sections = sections_of(cls, field)
        names += [flag for section in sections for flag in _flags(section, f"{prefix}{field}.")] or [prefix + field]
    return names


def _explain_unknown(path: str, key: str, sections: Sequence[type[BaseModel]], kinds: Sequence[type[BaseModel]]) -> str:
    """Returns the message for a key that its section does not have: another kind's key, or an unknown one."""
    takers = [kind for section in kinds if key in section.model_fields for kind in kinds_of(section)]
    if takers:
        (own,) = (kind for section in sections for kind in kinds_of(section))
        place = f"{path.removesuffix(key)}{KIND}"
        return f"'{path}' is a key of {place} {_either(takers)}, not of {own}; leave it out, or set {place}"
    return f"unknown key '{path}'{suggestion(key, [name for section in sections for name in section.model_fields])}"


def _either(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _required(path: str, sections: Sequence[type[BaseModel]]) -> list[str]:
    """Returns the dotted paths that are required at a missing place: itself, or its section's required fields."""
    if len(sections) > 1:
        return [f"{path}.{KIND}"]
    names = [f"{path}.{name}" for each in sections for name, field in each.model_fields.items() if field.is_required()]
    return names or [path]


def _holds_sections(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping | BaseModel) for value in values)


def _has(values: Mapping[str, Any], loc: tuple[int | str, ...]) -> bool:
    value: Any = values
    for part in loc:
        if not isinstance(value, Mapping) or part not in value:
            return isinstance(value, list)
        value = value[part]
    return True


def _follow(
    cls: type[BaseModel], loc: Sequence[int | str]
) -> tuple[tuple[int | str, ...], list[type[BaseModel]], list[type[BaseModel]]]:
    """Follows the location of one of pydantic's faults, starting from a class.

    Returns: (the location without kinds of unions, which pydantic includes; the sections at that location; the
        sections of all kinds that it could have).
    """
    path: list[int | str] = []
    sections, kinds = [cls], [cls]
    for part in loc:
        if isinstance(part, str) and len(sections) > 1:
            sections = [each for each in kinds if part in kinds_of(each)]
            continue
        path.append(part)
        if isinstance(part, str):
            takers = [section for section in sections if part in section.model_fields]
            sections = kinds = [each for section in takers for each in sections_of(section, part, in_list=True)]
    return tuple(path), sections, kinds
