"""What a run tells while it goes, and the signals that tell it to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from gridrad_cube.launch import World

#: Called after each step with the step, the number of steps and the latest record of metrics.
Progress = Callable[[int, int, Mapping[str, Any]], None]


@contextmanager
def reporter(
    progress: Progress | bool, *, steps: int, step: int, level: str, world: World
) -> Iterator[Progress | None]:
    """The function to call after each step; a bar where one is asked for."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress or not world.is_main or step >= steps:  # a bar without steps says nothing
        yield None
        return
    # Importing it warns in notebooks without ipywidgets, where no bar may be asked for.
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm(), tqdm(
        total=steps, initial=step, desc=f"train {level}", unit="step", dynamic_ncols=True
    ) as bar:  # fmt: skip

        def move(step: int, steps: int, record: Mapping[str, Any]) -> None:
            bar.update(step - bar.n)
            if record.get("step") == step:
                bar.set_postfix_str(
                    f"loss {record['train_loss']:.3f}, {record['images_per_second']:.0f} samples/s",
                    refresh=False,
                )

        yield move


@contextmanager
def caught_signals() -> Iterator[list[str]]:
    """Collect SIGTERM and the first SIGINT instead of dying of them."""
    received: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: Any) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, old[signal.Signals(number)])  # a second one acts as it always did

    for number in old:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
