"""Dataclasses <-> YAML <-> ``--section.key value``.

Three layers become one nested dict (a base recipe, a file, the command line), the dict is checked
strictly against the dataclass, and draccus builds the dataclass. draccus alone is too kind: it
turns ``true`` into 1, ``null`` into any type and hides which file a key came from, so ``check``
looks first.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import draccus
import yaml

from hfgen.errors import HfgenError, one_of

Choices = Mapping[type, Mapping[str, str | type]]
"""Abstract base class -> name -> class, or "module:Class" to import when it is chosen."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: ``1e-4`` is a number; ``yes``, ``on`` and ``+1000`` are words."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", "n~\0"),
    ("int", r"-?[0-9][0-9_]*", "-0123456789"),
    (
        "float",
        r"-?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|-?\.inf|\.nan",
        "-.0123456789",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"^(?:{_pattern})$"),
        list(_first.replace("\0", "")) + [""],
    )


def _float(loader: yaml.Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


# PyYAML's own reader wants a dot in "1e-4"; Python's does not.
_Loader.add_constructor("tag:yaml.org,2002:float", _float)  # type: ignore[arg-type]


def parse_yaml(text: str, origin: str) -> Any:
    """Values of a YAML text; HfgenError names ``origin`` and the line where it does not parse."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise HfgenError(
            f"{origin}:{line} is not valid YAML: {getattr(error, 'problem', error)}"
        ) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HfgenError(f"{path}: cannot be read as a recipe: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise HfgenError(
            f"{path}: a recipe is a mapping of sections, found {type(values).__name__}"
        )
    return values


SHARED = frozenset({"optimizer"})
"""Sections whose types take the same keys."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """``over`` on top of ``base``, section by section; a new ``type`` drops the old type's keys,
    but an optimizer keeps its learning rate and the like.
    """
    renewed = "type" in over and "type" in base and over["type"] != base["type"]
    if renewed and section not in SHARED:
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {"type": old}  # `likelihood: gaussian` below `likelihood.std: 0.1`
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value, key) if both else value  # type: ignore[arg-type]
    return merged


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """``["--a.b", "1", "--a.c=x"]`` -> ``{"a": {"b": 1, "c": "x"}}``."""
    dotted: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise HfgenError(
                f"command line: unexpected {flag!r}; settings look like --section.key value"
            )
        key, equals, text = flag[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise HfgenError(f"command line: --{key} needs a value, as in --{key} VALUE")
            text = rest.pop(0)
        dotted[key] = parse_yaml(text, f"command line: --{key}")
    return nest(dotted)


def nest(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` -> ``{"a": {"b": 1}}``; the form in which Python callers give overrides."""
    nested: dict[str, Any] = {}
    for key, value in dotted.items():
        *sections, name = key.split(".")
        here = nested
        for section in sections:
            here = here.setdefault(section, {})
            if not isinstance(here, dict):
                raise HfgenError(f"--{key}: {section!r} was given a value and a key inside it")
        here[name] = (
            merge(here[name], value)
            if isinstance(here.get(name), dict) and isinstance(value, dict)
            else value
        )
    return nested


def resolve(choice: str | type) -> type:
    """A class, or the class that "module:Class" names."""
    if isinstance(choice, type):
        return choice
    import importlib

    module, _, name = choice.partition(":")
    return getattr(importlib.import_module(module), name)


class Decoder:
    """Builds a dataclass from nested values: strict, with errors that name key, origin and what is
    valid.

    Args:
        choices: tables for the fields whose type is an abstract base class (``{"type": name, ...}``
            or just ``name``).
        origin: says where a dotted key came from ("my.yaml", "command line").
    """

    def __init__(self, choices: Choices, origin: typing.Callable[[str], str]):
        self.choices = choices
        self.origin = origin

    def decode(self, cls: type, values: Mapping[str, Any], path: str = "") -> Any:
        """An instance of the dataclass ``cls``; HfgenError on unknown keys, wrong types and
        impossible values.
        """
        self._check_keys(cls, values, path)
        hints = typing.get_type_hints(cls)
        arguments = {
            key: self._value(hints[key], value, _join(path, key)) for key, value in values.items()
        }
        try:
            return cls(**arguments)
        except (TypeError, ValueError, HfgenError) as error:
            raise self._error(path or "recipe", str(error)) from None

    def _check_keys(self, cls: type, values: Any, path: str) -> None:
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        if not isinstance(values, Mapping):
            raise self._error(
                path, f"expected a section with keys {', '.join(fields)}, got {values!r}"
            )
        for key in values:
            if key not in fields:
                raise HfgenError(
                    f"{self.origin(_join(path, str(key)))}: "
                    f"{one_of_key(_join(path, str(key)), key, list(fields))}"
                )
        for name, field in fields.items():
            required = (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            )
            if required and name not in values:
                raise self._error(_join(path, name), "is required and missing")

    def _value(self, hint: Any, value: Any, path: str) -> Any:
        if hint in self.choices:
            return self._choice(hint, value, path)
        if dataclasses.is_dataclass(hint):
            return self.decode(hint, value, path)  # type: ignore[arg-type]
        if not _fits(hint, value, self.choices):
            raise self._error(path, f"expected {_describe(hint)}, got {value!r}")
        if value is None:
            return None
        if get_origin(hint) in (list, tuple) and get_args(hint)[0] in self.choices:
            part = get_args(hint)[0]
            return tuple(self._choice(part, v, f"{path}[{i}]") for i, v in enumerate(value))
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        special = [m for m in members if m in self.choices or dataclasses.is_dataclass(m)]
        if special:
            return self._value(special[0], value, path)
        return draccus.decode(hint, value)

    def _choice(self, base: type, value: Any, path: str) -> Any:
        table = self.choices[base]
        values = {"type": value} if isinstance(value, str) else value
        if not isinstance(values, Mapping) or "type" not in values:
            raise self._error(
                path, f"needs a type, one of {', '.join(sorted(table))}; got {value!r}"
            )
        if values["type"] not in table:
            key = _join(path, "type")
            raise HfgenError(f"{self.origin(key)}: {one_of(key, values['type'], list(table))}")
        rest = {key: v for key, v in values.items() if key != "type"}
        return self.decode(resolve(table[values["type"]]), rest, path)

    def _error(self, path: str, message: str) -> HfgenError:
        return HfgenError(f"{self.origin(path)}: {path}: {message}")


def one_of_key(path: str, key: str, valid: list[str]) -> str:
    """The text for an unknown key, with the nearest valid one."""
    import difflib

    near = difflib.get_close_matches(str(key), valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {path!r}; {hint}valid here: {', '.join(sorted(valid))}"


def encode(value: Any, choices: Choices, *, with_defaults: bool = True) -> Any:
    """A dataclass as plain YAML values, ``type`` first where a table chose the class; the inverse
    of ``decode``. Without defaults only the fields that differ from theirs are kept.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        body = {
            f.name: encode(getattr(value, f.name), choices, with_defaults=with_defaults)
            for f in dataclasses.fields(value)
            if f.init and (with_defaults or getattr(value, f.name) != _default(f))
        }
        name = choice_name(value, choices)
        return {"type": name, **body} if name else body
    if isinstance(value, Mapping):
        return {k: encode(item, choices, with_defaults=with_defaults) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, choices, with_defaults=with_defaults) for item in value]
    return draccus.encode(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    """The value of a field that nobody set; ``MISSING``, which equals nothing, where it must be
    set.
    """
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def choice_name(value: Any, choices: Choices) -> str | None:
    """The name under which a table holds the class of ``value``."""
    for base, table in choices.items():
        if isinstance(value, base):
            for name, choice in table.items():
                if (
                    choice is type(value)
                    or choice == f"{type(value).__module__}:{type(value).__name__}"
                ):
                    return name
    return None


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML in the order given, short lists on one line."""
    return yaml.safe_dump(
        dict(values), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _fits(hint: Any, value: Any, choices: Choices) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(argument, value, choices) for argument in arguments)
    if hint in (None, type(None)):
        return value is None
    if origin is Literal:
        return value in arguments and not (isinstance(value, bool) and True not in arguments)
    if hint in choices:
        return isinstance(value, str | Mapping)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping)
    if origin in (list, tuple):
        # diffusers writes tuple[int] for a list of any length
        fixed = origin is tuple and Ellipsis not in arguments and len(arguments) > 1
        if not isinstance(value, list | tuple) or (fixed and len(arguments) != len(value)):
            return False
        hints = list(arguments) if fixed else [*arguments[:1]] * len(value)
        return all(_fits(hint, item, choices) for hint, item in zip(hints, value, strict=True))
    if origin is dict or hint is dict:
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if hint in (None, type(None)):
        return "null"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if origin in (list, tuple):
        return f"a list of {_describe(arguments[0])}" if arguments else "a list"
    return names.get(hint, getattr(hint, "__name__", str(hint)))
