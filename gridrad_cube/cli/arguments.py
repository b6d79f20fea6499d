"""What several commands share: options, reading samples and queries, writing figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from gridrad_cube.cli.messages import echo, spell

PATH = click.Path(path_type=Path)
#: Dots per inch of figures: what a journal asks of color pictures is 300, a screen shows 110.
DPI = 150


def complete_store(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the path of a store, which is a folder."""
    return [CompletionItem(incomplete, type="dir")]


def complete_channel(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the label of a channel: of the stores that the command line names, else of all that are known."""
    from gridrad_cube.schema import CHANNELS as known
    from gridrad_cube.selection import labels_of
    from gridrad_cube.store import open_embeddings, open_packed, store_info

    # The parser has read no arguments yet where the last option lacks its value, so the words are looked at.
    found: list[str] = []
    for word in os.environ.get("COMP_WORDS", "").split():
        try:
            kind = store_info(word)["kind"]
            opened = open_packed(word) if kind == "patches" else open_embeddings(word)
            found += [label.name for label in labels_of(opened)]
        except (ValueError, OSError):  # not a store
            continue
    return [name for name in dict.fromkeys(found or known) if name.startswith(incomplete)]


CHANNEL = click.option(
    "--channel", help="Name, or label such as reflectivity@3.0km.", shell_complete=complete_channel
)
CHANNELS = click.option(
    "--channels",
    "-c",
    multiple=True,
    help="A channel, such as reflectivity@3.0km; all by default (repeatable).",
    shell_complete=complete_channel,
)
CUBE = click.option(
    "--cube",
    help="Path of the cube that the embeddings were made from, if it has moved.",
    shell_complete=complete_store,
)
JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
SCHEDULER = click.option("--scheduler", help="Address or scheduler file of a running Dask cluster.")
SEED = click.option("--seed", type=int, default=0)
WORKERS = click.option("--workers", type=click.IntRange(1), default=1, help="Processes on this machine.")


def combine(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make one decorator of several; the first one comes first in the help."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def store_option(text: str) -> Callable[[Any], Any]:
    """Make the option ``--store`` with this help."""
    return click.option("--store", required=True, help=text, shell_complete=complete_store)


_SAMPLE = "CROP[,ROW,COL][,CHANNEL]"
QUERY = combine(
    click.option("--time", help="Time of the query, UTC, such as 2021-07-05T17:50."),
    click.option("--latitude", type=float),
    click.option("--longitude", type=float),
    click.option("--like", multiple=True, metavar=_SAMPLE, help="A sample as the query (repeatable)."),
    click.option("--unlike", multiple=True, metavar=_SAMPLE, help="A sample that answers should differ from."),
    click.option(
        "--exclude", nargs=2, default=("6h", "200km"), metavar="TIME DISTANCE",
        help="Leave out neighbors of the query: within this time, and within this distance or overlapping it.",
    ),
    click.option("--no-readout", is_flag=True, help="Compare the vectors as they are stored."),
    click.option(
        "--separate", nargs=2, default=("0h", "0km"), metavar="TIME DISTANCE",
        help="Leave out neighbors of better answers in the same way, by default those that overlap at the same time.",
    ),
)  # fmt: skip


def read_query(options: dict[str, Any]) -> Any:
    """Return the query that the options of a command give: a sample, examples, or a place and time."""
    place = {name: options[name] for name in ("time", "latitude", "longitude")}
    given = [value is not None for value in place.values()]
    if any(given) != all(given) or any(given) == bool(options["like"]):
        raise click.UsageError(
            "a query needs either --like CROP,ROW,COL or all of --time, --latitude and --longitude"
        )
    wanted = [place] if any(given) else [_sample(text) for text in options["like"]]
    if len(wanted) == 1 and not options["unlike"]:
        return wanted[0]
    return {"positive": wanted, "negative": [_sample(text) for text in options["unlike"]]}


def _sample(text: str) -> tuple[Any, ...]:
    """Return ``CROP,ROW,COL``, ``CROP`` alone at level 2k, and perhaps a channel after it."""
    numbers, comma, channel = text.rpartition(",")
    if not comma or channel.strip().isdigit():
        return numbers_of(text)
    return (*numbers_of(numbers), channel.strip())


def numbers_of(text: str) -> tuple[int, ...]:
    """Read whole numbers such as 12,3,4."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(part.isdigit() for part in parts):
        raise click.UsageError(
            f"{text!r}: expected CROP,ROW,COL, or CROP at level 2k, then ,CHANNEL if the store has several"
        )
    return tuple(map(int, parts))


def finish(report: Any) -> None:
    """Print the report of a build; exit with status 1 if a file failed or was not read."""
    echo(spell(str(report), click.get_current_context()))
    if not report.is_complete:
        raise SystemExit(1)


def save_figure(figure: Any, out: Path, dpi: int = DPI) -> None:
    """Write a figure in the format of the suffix."""
    from gridrad_cube.storage import open_for_writing

    with open_for_writing(out) as file:
        figure.savefig(file, format=out.suffix[1:] or "png", dpi=dpi)
