"""Progress bars on standard error, and what an interruption says: one implementation for every long function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

__all__ = ["explain_interruption", "is_watched", "progress_bar"]


def __dir__() -> list[str]:
    return __all__


def is_watched() -> bool:
    """Say whether somebody sees standard error as it is written: it is a terminal or the output of a notebook."""
    # The stream of a notebook says that it is no terminal.
    return sys.stderr is not None and (
        sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")
    )


def progress_bar(
    title: str,
    items: Iterable[Any] | None = None,
    *,
    total: int,
    unit: str,
    progress: bool | None = None,
    initial: int = 0,
) -> tqdm[Any]:
    """Make a progress bar, to iterate over or to update; use it as a context, so that its line always ends.

    Parameters
    ----------
    title
        What is done, before the bar.
    items
        What to iterate over; None for a bar that is moved by ``update``.
    total, initial
        Number of units, and those that are done already. Without any there is no bar.
    unit
        What is counted, in the singular.
    progress
        Whether to show it; None shows it in a terminal and in a notebook.
    """
    shown = bool(total) and (is_watched() if progress is None else progress)
    return tqdm(
        items,
        title,
        total,
        unit=unit,
        initial=initial,
        disable=not shown,
        dynamic_ncols=True,
        file=sys.stderr,
    )


@contextmanager
def explain_interruption(kept: Callable[[], str]) -> Iterator[None]:
    """Give a `KeyboardInterrupt` the text that says what is kept and how to resume.

    Parameters
    ----------
    kept
        Gives the text when it is needed. An inner text stays.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if str(error):
            raise
        raise KeyboardInterrupt(f"Interrupted. {kept()}") from None
