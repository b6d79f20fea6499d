"""Charts of a store and of a run: distributions, training curves."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from gridrad_cube.plot.canvas import BLUE, GREEN, ORANGE, PURPLE, new_figure, title_of, write_units
from gridrad_cube.schema import CHANNELS, SchemaError
from gridrad_cube.store import store_info

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Quantities of the training curves: key in metrics.jsonl -> title with unit.
_CURVES = {
    "train_loss": "Training loss",
    "train_lr": "Learning rate",
    "teacher_entropy": "Entropy of the teacher's targets (nats)",
    "feature_std": "Spread of features (1: even, 0: collapsed)",
    "rankme": "RankMe (effective dimensions)",
    "probe_retrieval": "Probe: retrieval (dashed: baseline)",
    "images_per_second": "Samples per second",
}
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, "0.35")


def curves(runs: Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str]) -> Figure:
    """Draw the training curves of one run, or of several for comparison.

    Dashed lines mark ln K, which is the loss and the entropy if K prototypes do not separate any inputs, and
    the probe's score of the baseline without a network.

    Parameters
    ----------
    runs
        Folder of a run (it holds ``metrics.jsonl``), or label -> folder.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        If a folder has no metrics.
    """
    if not isinstance(runs, Mapping):
        runs = {Path(runs).name: runs}
    records = {label: _read_metrics(folder) for label, folder in runs.items()}
    keys = [k for k in _CURVES if any(rows[k].notna().any() for rows in records.values())]
    if not keys:
        raise SchemaError(
            f"plot: no metrics yet in {[str(r) for r in runs.values()]}; expected records of steps"
        )
    figure, axes = _panels(len(keys), (4.2, 3.0), 0.5)
    for key, ax in zip(keys, axes, strict=True):
        _curve(ax, key, records)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(max(len(labels), 1), 4), frameon=False
    )
    return figure


def _panels(count: int, size: tuple[float, float], more: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels in up to three columns, of a size in inches each."""
    columns = min(3, count)
    lines = -(-count // columns)
    figure, axes = new_figure(lines, columns, figsize=(size[0] * columns, size[1] * lines + more))
    for ax in axes.ravel()[count:]:
        ax.set_visible(False)
    return figure, list(axes.ravel()[:count])


def _curve(ax: Axes, key: str, records: Mapping[str, pd.DataFrame]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for (label, rows), color in zip(records.items(), itertools.cycle(_COLORS), strict=False):
        points = rows[["step", key]].dropna()
        marker = "o" if len(points) < 3 else None
        ax.plot(points["step"], points[key], color=color, label=label, linewidth=1.4, marker=marker)
        # ln K, the entropy of K equal shares, and the probe's score of the baseline.
        bounds = (rows["teacher_entropy"] + rows["teacher_kl_to_uniform"]).dropna()
        who = f"{label}: " if len(records) > 1 else ""
        if key in ("train_loss", "teacher_entropy") and len(bounds):
            bound = bounds.iloc[-1]
            ax.axhline(bound, color=color, linestyle="--", linewidth=1, label=f"{who}ln K = {bound:.2f}")
        baselines = rows["probe_baseline"].dropna()
        if key == "probe_retrieval" and len(baselines):
            ax.axhline(baselines.iloc[-1], color=color, linestyle="--", linewidth=1)
    ax.set_title(_CURVES[key], fontsize=10, loc="left")
    ax.set_xlabel("step", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if key == "probe_retrieval":
        ax.set_ylim(0, 1)
    if key in ("feature_std", "images_per_second", "train_lr"):
        top = np.nanmax([v for line in ax.get_lines() for v in np.asarray(line.get_ydata(), float)])
        ax.set_ylim(0, max(1.08 * top, 1.05 if key == "feature_std" else 1e-12))
    if key == "train_lr":
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.grid(alpha=0.3)


def _read_metrics(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the records of a run's ``metrics.jsonl``, in order; an incomplete last line of a killed process
    is skipped.
    """
    path = Path(folder, "metrics.jsonl")
    if not path.is_file():
        raise SchemaError(
            f"{folder}: no metrics.jsonl; expected the folder of a training run (`out` of train)"
        )
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    records = []
    for i, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if i < len(lines):
                raise SchemaError(
                    f"{path}: line {i} is not JSON ({error}); expected one record a line"
                ) from error
    columns = ["step", *_CURVES, "teacher_kl_to_uniform", "probe_baseline"]
    return pd.DataFrame(records, columns=columns).astype(float)


def statistics(cube: xr.Dataset) -> Figure:
    """Draw the distribution of each channel over clean patches, from the training statistics of a cube.

    Channels of kind ``other`` have no typical range and are not drawn.

    For radar and rain, only pixels with echo count. Bins span the channel's typical range.

    Parameters
    ----------
    cube
        From `gridrad_cube.open_cube`; no pixel is read.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        If the dataset has no training statistics.
    """
    info = store_info(cube) if "gridrad_cube" in cube.attrs else {}
    known = info.get("training_statistics") or {}
    found = {label: numbers for label, numbers in known.items() if label.split("@")[0] in CHANNELS}
    if not found:
        raise SchemaError("plot: no training statistics among the attributes; expected those of open_cube")
    figure, axes = _panels(len(found), (4.4, 3.4))
    for (label, numbers), ax in zip(found.items(), axes, strict=True):
        _distribution(ax, label, numbers)
    return figure


def _distribution(ax: Axes, label: str, numbers: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    channel = CHANNELS[label.split("@")[0]]
    units = "" if channel.units == "1" else f" {write_units(channel.units)}"
    lines = [title_of(label), f"{numbers['patches']:,} clean patches"]
    if numbers.get("histogram"):
        lines[1] += f", {numbers['minimum']:.4g} to {numbers['maximum']:.4g}{units}"
        lines.append(f"mean {numbers['mean']:.4g} (line), std {numbers['std']:.3g} (shaded){units}")
    ax.set_title("\n".join(lines), fontsize=9.5, loc="left")
    ax.set_xlabel(title_of(label, units=True), fontsize=9)
    ax.set_xlim(*channel.typical_range)
    ax.tick_params(labelsize=8)
    if not numbers.get("histogram"):
        ax.text(0.5, 0.5, "no clean pixel", ha="center", va="center", transform=ax.transAxes)
        return
    counts = np.asarray(numbers["histogram"], np.float64)
    edges = np.linspace(*channel.typical_range, len(counts) + 1)
    ax.stairs(100 * counts / max(counts.sum(), 1), edges, fill=True, color="#8fb8d8")
    mean, std = numbers["mean"], numbers["std"]
    ax.axvline(mean, color=BLUE, linewidth=1.4)
    ax.axvspan(mean - std, mean + std, color=BLUE, alpha=0.12, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    filled = np.flatnonzero(counts)
    if len(filled) and filled[-1] - filled[0] < len(counts) // 4:  # a few bins would be a line
        ax.set_xlim(edges[max(filled[0] - 2, 0)], edges[min(filled[-1] + 3, len(counts))])
    if channel.kind == "rain":
        ax.set_yscale("log")
    ax.set_ylabel("echo pixels a bin (%)" if channel.has_echo else "pixels a bin (%)", fontsize=9)
