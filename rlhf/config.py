"""What is wrong with a configuration, in words: the dotted path, the value, where it came from, the remedy."""

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


C = TypeVar("C", bound=BaseModel)
Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    """Base of every configuration class: immutable, no unknown keys, and a docstring under each field as its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )


def load_config(cls: type[C], *, prog: str, argv: Sequence[str] | None, env_prefix: str) -> C:
    """Returns the configuration of a command, from all four sources; prints help and exits 0 on --help.

    Args:
        cls: the configuration class.
        prog: the command's name, for help.
        argv: its arguments; None takes the process's own.
        env_prefix: such as "RLHF_POLICY"; the variables are RLHF_POLICY__SERVER__PORT and so on.
    Raises: ConfigError.
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
    """Returns the configuration in a TOML file, with `overrides` (nested likewise) over it. Raises: ConfigError."""
    return _validate(cls, {str(path): _read_toml(path), "the overrides": dict(overrides or {})})


def load_values(cls: type[C], values: Mapping[str, object], source: str) -> C:
    """Returns the configuration in nested values; `source` says in errors where they stand. Raises: ConfigError."""
    return _validate(cls, {source: values})


def write_config(path: Path, config: Section) -> None:
    """Writes the values that were set, none that is a default, for load_config to read. Raises: OSError."""
    values = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    path.write_text(tomli_w.dumps(values), encoding="utf-8")


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
    """Raises ConfigError for a variable of our prefix that names no field: a typo must not pass in silence."""
    for variable in os.environ:
        if not variable.upper().startswith(prefix):
            continue
        section: type[BaseModel] | None = cls
        for part in variable[len(prefix) :].lower().split("__"):
            if section is None or part not in section.model_fields:
                known = section.model_fields if section else ()
                raise ConfigError(f"environment variable {variable}: unknown key '{part}'{suggestion(part, known)}")
            section = section_of(section, part)


def _validate(cls: type[C], sources: Mapping[str, Mapping[str, Any]]) -> C:
    """Returns cls built from the sources, later ones winning. Raises ConfigError with every fault, one a line."""
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
    """Returns what is wrong with the flags, with a suggestion for one that is not known."""
    message = message.removeprefix("error parsing CLI: ")
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown == message:
        return f"{message}; see {prog} --help"
    word = unknown.split()[0].split("=")[0]
    near = difflib.get_close_matches(word, [f"--{flag}" for flag in _flags(cls)], n=1)
    return f"unknown flag '{word}'" + (f"; did you mean '{near[0]}'?" if near else "") + f"; see {prog} --help"


def _flags(cls: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for field in cls.model_fields:
        section = section_of(cls, field)
        names += _flags(section, f"{prefix}{field}.") if section else [prefix + field]
    return names


@contextmanager
def exit_on_config_error(prog: str) -> Iterator[None]:
    """Turns a ConfigError into a line on stderr and exit code 2, as a command's main should."""
    try:
        yield
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"{prog}: {line}", file=sys.stderr)
        raise SystemExit(2) from None
