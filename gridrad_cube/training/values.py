"""Values of options as text, TOML and JSON have them, to the types that their fields declare."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from gridrad_cube.schema import SchemaError


def coerce(name: str, value: Any, annotation: Any) -> Any:
    """A value as its field wants it: numbers from text, tuples from lists; refuses what does not fit.

    Raises
    ------
    SchemaError
        Names the option, the value and what was expected.
    """
    expected = describe(annotation)
    try:
        return _coerce(value, annotation)
    except (TypeError, ValueError):
        raise SchemaError(f"{flag(name)}: got {value!r}; expected {expected}") from None


def _coerce(value: Any, annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments)
    if origin is tuple:
        items = [value] if isinstance(value, str) else list(value)
        if arguments[0] is str:
            items = [part for item in items for part in str(item).split(",") if part]
        return tuple(_coerce(item, arguments[0]) for item in items)
    if annotation is bool:
        return _boolean(value)
    if isinstance(value, bool) or (annotation is int and isinstance(value, float) and value != int(value)):
        raise ValueError
    return annotation(value)


def _coerce_union(value: Any, arguments: tuple[Any, ...]) -> Any:
    if type(None) in arguments and value is None:
        return None
    for argument in arguments:
        if argument is not type(None):
            try:
                return _coerce(value, argument)
            except (TypeError, ValueError):
                continue
    raise ValueError


def _boolean(value: Any) -> bool:
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


def describe(annotation: Any) -> str:
    """What a field takes, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return (
            " or ".join(str(a) for a in arguments) if len(arguments) < 3 else "one of " + ", ".join(arguments)
        )
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments if a is not type(None))
    if origin is tuple:
        return "words" if arguments[0] is str else "numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[annotation]


def flag(name: str) -> str:
    """The command-line spelling of an option."""
    return "--" + name.replace("_", "-")
