"""Progress bars on standard error, and the text of an interruption, for every long function."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

__all__ = ["explain_interruption", "is_watched", "progress_bar"]


#: Size that a bar assumes in a terminal of unknown size.
_UNKNOWN_SIZE = {"ncols": 80, "nrows": 20}


def __dir__() -> list[str]:
    return __all__


def is_watched() -> bool:
    """Return whether standard error is a terminal or the output of a notebook, so that somebody sees it at
    once.

    Returns
    -------
    True if it is.
    """
    # The stream of a notebook does not count as a terminal.
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
        Text before the bar.
    items
        Items to iterate over; None for a bar that is moved by ``update``.
    total, initial
        Number of units, and of those that are already done. With 0 units there is no bar.
    unit
        Name of a unit, in the singular.
    progress
        True to show it; None shows it in a terminal and in a notebook.

    Returns
    -------
    The bar. Nothing is drawn if it is not shown.
    """
    shown = bool(total) and (is_watched() if progress is None else progress)
    size: dict[str, Any] = _UNKNOWN_SIZE if shown and _has_no_size() else {"dynamic_ncols": True}
    return tqdm(
        items,
        title,
        total,
        unit=unit,
        initial=initial,
        disable=not shown,
        file=sys.stderr,
        **size,
    )


def _has_no_size() -> bool:
    """Say whether this is a terminal that does not know its size, such as that of ``script`` in a job."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns == 0
    except (OSError, ValueError):
        return False


@contextmanager
def explain_interruption(kept: Callable[[], str]) -> Iterator[None]:
    """Add to a `KeyboardInterrupt` the text on what is kept and how to resume.

    Parameters
    ----------
    kept
        Function that returns the text. The text of an inner context is kept.

    Raises
    ------
    KeyboardInterrupt
        With the text.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if str(error):
            raise
        raise KeyboardInterrupt(f"Interrupted. {kept()}") from None
