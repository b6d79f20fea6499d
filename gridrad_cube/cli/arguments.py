"""Samples and queries in the words of the command line."""

from __future__ import annotations

from typing import Any

import click


def read_query(options: dict[str, Any]) -> Any:
    """The query that the options of a command give: samples, examples, a vector, or a place and time."""
    place = {
        k: options[o] for k, o in (("time", "time_"), ("latitude", "latitude"), ("longitude", "longitude"))
    }
    at_place = any(v is not None for v in place.values())
    if at_place + bool(options["like"]) + (options["vector"] is not None) > 1:
        raise click.UsageError("give one of --like, --vector, or a time and place, not both")
    if at_place and None in place.values():
        raise click.UsageError("a place needs all of --time, --latitude and --longitude")
    if options["vector"] is not None:
        import numpy as np

        wanted: Any = np.load(options["vector"], allow_pickle=False)
    elif at_place:
        wanted = place
    else:
        wanted = [_sample(text) for text in options["like"]]
    if not at_place and not len(wanted):
        raise click.UsageError(
            "a query needs --like CROP,ROW,COL, --vector FILE, or all of --time, --latitude and --longitude"
        )
    several = wanted if isinstance(wanted, list) else [wanted]
    if len(several) == 1 and not options["unlike"]:
        return several[0]
    return {"positive": several, "negative": [_sample(text) for text in options["unlike"]]}


def _sample(text: str) -> tuple[Any, ...]:
    """``CROP,ROW,COL``, ``CROP`` alone at level 2k, and perhaps a channel after it."""
    parts = [p.strip() for p in text.split(",")]
    channel = [] if parts[-1].isdigit() else [parts.pop()]
    return (*numbers(",".join(parts), text), *channel)


def numbers(text: str, whole: str | None = None) -> tuple[int, ...]:
    """Whole numbers of a text such as 12,3,4."""
    parts = [p.strip() for p in text.split(",")]
    if len(parts) not in (1, 3) or not all(p.isdigit() for p in parts):
        raise click.UsageError(
            f"{whole or text!r}: expected CROP,ROW,COL (CROP alone at level 2k), and ,CHANNEL after it where the store "
            "has several"
        )
    return tuple(map(int, parts))
