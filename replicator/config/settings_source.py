"""Where settings come from, and what is said when they cannot be used.

pydantic-settings reads variables and `.env`; the nearest known name, the origin of each problem and the silence
about values are ours. Sources are merged table by table; a list replaces a list.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from replicator.errors import ConfigError

PREFIX = "REPLICATOR_"
CONFIG_VARIABLE = "REPLICATOR_CONFIG"
FILE_NAME = "replicator.toml"

# Kubernetes puts these into every pod of a namespace that has a service called "replicator".
_SERVICE_LINK = re.compile(r"REPLICATOR_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")

_NAME = re.compile(r"\w+", re.ASCII)
_SUBJECT = re.compile(r"^\w+ should")
OWN_WORDS = {
    "missing": "is missing",
    "model_type": "should be a table of keys",
    "string_too_short": "should not be empty",
    "too_short": "should not be empty",
    "tuple_type": "should be a list",
    "mapping_type": "should be a table of names",
}

M = TypeVar("M", bound=BaseModel)
Tree = dict[str, Any]
Location = tuple[int | str, ...]


@dataclass
class Sources:
    """Everything that was read: the merged tree, and what is needed to say where a key came from."""

    tree: Tree
    config: Path | None = None
    env_file: Path | None = None
    variables: frozenset[str] = frozenset()
    env_file_names: frozenset[str] = frozenset()
    problems: list[str] = field(default_factory=list)


def load_tree(model: type[BaseModel], config: Path | None, cwd: Path) -> Sources:
    """Read file, `.env` and environment into one tree. Raises ConfigError when a file cannot be read."""
    path = find_config(config, cwd)
    env_file = (path.parent if path else cwd) / ".env"
    environment, dotenv = _read_variables(model, env_file)
    tree = _merge(_merge(read_toml(path) if path else {}, dotenv), environment)
    sources = Sources(tree, path, env_file)
    sources.variables = frozenset(name.upper() for name in os.environ if name.upper().startswith(PREFIX))
    sources.env_file_names = frozenset(_names_in(env_file))
    for name in sorted(sources.variables):
        sources.problems.extend(_check_variable(model, name, "the environment"))
    for name in sorted(sources.env_file_names - sources.variables):
        sources.problems.extend(_check_variable(model, name, str(env_file)))
    return sources


def validate_tree(model: type[M], sources: Sources) -> M:
    """Make the settings. Raises ConfigError that lists every problem, with key and origin, without values."""
    problems = list(sources.problems)
    settings = None
    try:
        settings = model.model_validate(sources.tree)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        problems += [_describe(model, sources, detail["type"], detail["loc"], detail["msg"]) for detail in details]
    if problems or settings is None:
        # Outside of the except clause, so that pydantic's error, which knows the values, is not its context.
        raise _config_error(problems, sources)
    return settings


def find_config(config: Path | None, cwd: Path) -> Path | None:
    """Return the file to read: the argument, REPLICATOR_CONFIG, or `replicator.toml` if it is there.

    Raises ConfigError when a file that was named does not exist.
    """
    named = config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    if named is None:
        path = cwd / FILE_NAME
        return path if path.exists() else None
    path = cwd / named.expanduser()
    if not path.is_file():
        raise ConfigError(
            f"the configuration file {path} does not exist",
            why="--config names it" if config else f"{CONFIG_VARIABLE} names it",
            hint=f"`replicator init --source DSN --config {path}` writes one",
        )
    return path


def read_toml(path: Path) -> Tree:
    """Return the file's tables. Raises ConfigError with line and column when it is no TOML."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", why=error.strerror, hint="check its permissions") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not written in UTF-8", why=f"byte {error.start} is not", hint="save it as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML", why=str(error), hint="correct that place") from None


def _read_variables(model: type[BaseModel], env_file: Path) -> tuple[Tree, Tree]:
    from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource
    from pydantic_settings.exceptions import SettingsError

    class Keys(BaseSettings, model, defer_build=True):  # type: ignore[misc, valid-type]
        pass

    check_env_file(env_file)
    options: dict[str, Any] = {"env_prefix": PREFIX, "env_nested_delimiter": "__", "case_sensitive": False}
    try:
        environment = EnvSettingsSource(Keys, **options)()
        file = env_file if env_file.is_file() else None
        dotenv = DotEnvSettingsSource(Keys, env_file=file, dotenv_filtering="only_existing", **options)()
    except (OSError, UnicodeDecodeError, SettingsError):
        raise _unreadable(env_file) from None
    return environment, dotenv


def check_env_file(env_file: Path) -> None:
    """Raise ConfigError for a line that says nothing: dotenv would pass over it, and a default would stand in for it.

    Lines that are not ours may be anything that dotenv can read; a name alone is one such.
    """
    if not env_file.is_file():
        return
    from dotenv.parser import parse_stream

    try:
        with env_file.open(encoding="utf-8-sig") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError):
        raise _unreadable(env_file) from None
    for binding in bindings:
        name = binding.key or ""
        is_ours = name.upper().startswith(PREFIX)
        if binding.error or (is_ours and (binding.value is None or not _NAME.fullmatch(name))):
            line = binding.original.line + _count_blank(binding.original.string)
            raise ConfigError(
                f"line {line} of {env_file} cannot be read",
                why="it is no NAME=value, or its quotes are not closed",
                hint=f"correct line {line}: {PREFIX}SOURCE__DSN='host=... dbname=...'",
            )


def _count_blank(text: str) -> int:
    # An entry begins with the empty lines ahead of it.
    return text[: len(text) - len(text.lstrip())].count("\n")


def _unreadable(env_file: Path) -> ConfigError:
    return ConfigError(f"{env_file} cannot be read", hint="check its permissions; it should be UTF-8")


def _names_in(env_file: Path) -> Iterator[str]:
    if env_file.is_file():
        from dotenv import dotenv_values

        yield from (n.upper() for n in dotenv_values(env_file, interpolate=False) if n.upper().startswith(PREFIX))


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> Tree:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _check_variable(model: type[BaseModel], name: str, origin: str) -> Iterator[str]:
    """Yield the problem of a variable whose first word is no key: pydantic would pass over it in silence."""
    first = name.removeprefix(PREFIX).partition("__")[0].lower()
    if first in model.model_fields or name == CONFIG_VARIABLE or _SERVICE_LINK.fullmatch(name):
        return
    sections = {key.rpartition(".")[0] for key in known_keys(model)}
    known = [PREFIX + key.upper().replace(".", "__") for key in known_keys(model) if key not in sections - {"tables"}]
    yield f"{name} in {origin}: unknown variable; the nearest known one is {_nearest(name, known)}"


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the path of every key, sections before what is in them, entries of a list as `tables.name`."""
    for name, info in model.model_fields.items():
        yield prefix + name
        section = section_of(info.annotation)
        if section is not None:
            yield from known_keys(section, f"{prefix}{name}.")


def section_of(annotation: object) -> type[BaseModel] | None:
    """Return the model that a key's type is or lists; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part)) is not None), None)


def _describe(model: type[BaseModel], sources: Sources, kind: str, location: Location, message: str) -> str:
    if kind == "extra_forbidden":
        message = f"unknown key; the nearest known one is {_nearest_key(model, location)}"
    elif kind in OWN_WORDS:
        message = OWN_WORDS[kind]
    else:
        own, message = message.startswith("Value error, "), message.removeprefix("Value error, ")
        message = message if own else _SUBJECT.sub("should", message)
    if not location:
        return message
    where = _origin(sources, location)
    return f"{format_location(location)}{f' ({where})' if where else ''}: {message}"


def format_location(location: Location) -> str:
    """Return a key's path for people: `source.dsn`, `[[tables]] number 2, key`."""
    if len(location) > 1 and location[0] == "tables" and isinstance(location[1], int):
        rest = ".".join(str(part) for part in location[2:])
        return f"[[tables]] number {location[1] + 1}" + (f", {rest}" if rest else "")
    return ".".join(str(part) for part in location if part != "[key]")


def _origin(sources: Sources, location: Location) -> str:
    for length in range(len(location), 0, -1):
        name = PREFIX + "__".join(str(part).upper() for part in location[:length])
        if name in sources.variables:
            return name
        if name in sources.env_file_names:
            return f"{name} in {sources.env_file}"
    return str(sources.config) if sources.config else ""


def _nearest_key(model: type[BaseModel], location: Location) -> str:
    """Return the known key most like an unknown one: of the same section, else one of that name elsewhere."""
    *parents, last = [str(part) for part in location if not isinstance(part, int)]
    every = list(known_keys(model))
    prefix = "".join(f"{parent}." for parent in parents)
    beside = {key.removeprefix(prefix): key for key in every if key.startswith(prefix)}
    beside = {name: key for name, key in beside.items() if "." not in name}
    if close := difflib.get_close_matches(last.lower(), beside, n=1):
        return beside[close[0]]
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(every)}
    if close := difflib.get_close_matches(last.lower(), elsewhere, n=1, cutoff=0.8):
        return elsewhere[close[0]]
    return beside[_nearest(last.lower(), list(beside))] if beside else _nearest(last.lower(), every)


def _nearest(word: str, known: list[str]) -> str:
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]


def _config_error(problems: list[str], sources: Sources) -> ConfigError:
    if len(problems) == 1:
        what = problems[0]
    else:
        what = f"{len(problems)} settings cannot be used:" + "".join(f"\n  - {problem}" for problem in problems)
    where = sources.config or FILE_NAME
    return ConfigError(what, hint=f"correct {where} or the variable; the README lists every key with its default")
