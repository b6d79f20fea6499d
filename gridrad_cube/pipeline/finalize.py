"""Make a finished store from the build log: global flags, training statistics, attributes. No source is read."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from gridrad_cube import quality, store
from gridrad_cube.schema import (
    Flag,
    QualitySpec,
    SchemaError,
    build_spec,
    channel_label,
    default_reject,
    statistics_of,
)
from gridrad_cube.store import Build, store_info

#: Packages whose versions are written to the store.
_SOFTWARE = ("gridrad-cube", "numpy", "xarray", "zarr", "netCDF4")


def finalize(
    build: Build,
    flag_by: QualitySpec | None = None,
    *,
    damaged: Collection[str] = (),
    withdrawn: Collection[str] | None = None,
    event: str | None = None,
) -> None:
    """Make the store from its build log: small variables, global flags, training statistics, and the root
    last.

    Thresholds of global flags are fixed the first time, and are applied to rows that are written later. This
    function can run again at any time, with the same result. Blocks of rows without changes are copied, so
    that the cost depends on what was added. Readers see the previous state until the root is written.

    Parameters
    ----------
    build
        The build.
    flag_by
        Thresholds to flag all patches again, from the stored statistics. None keeps those of the store.
    damaged
        Keys of damaged objects, which are written again.
    withdrawn
        Files, or scenes of files, whose patches get the flag ``withdrawn``. None keeps those of the store.
    event
        Line of the history; None says what was built.

    Raises
    ------
    SchemaError
        If sources of the store are missing from plan or log.
    """
    commit = store.Commit(build.files, damaged)
    _check_complete(build, commit)
    old = commit.last.root.info if commit.last else {}
    kept = build_spec(QualitySpec, old["quality"]) if "quality" in old else build.recipe.quality
    flagging = flag_by or kept
    gone = frozenset(old.get("withdrawn", ()) if withdrawn is None else withdrawn)
    if "thresholds" in old and flag_by is None:
        fixed: dict[str, Any] = {name: old[name] for name in ("thresholds", "thresholds_of") if name in old}
    else:
        failed = sum(record.status == "failed" for record in build.refused.values())
        scenes = [build.written, len(build.entries) + failed]
        fixed = {"thresholds": _thresholds(build, flagging, gone), "thresholds_of": scenes}
    thresholds = fixed["thresholds"]
    blocks, extends = _write_blocks(commit, build, flagging, thresholds, gone)
    sums = [block["sums"] for block in blocks.values()]
    info = {
        "recipe": build.recipe.to_dict(),
        "channels": {n: c.to_dict() for n, c in build.layout.channels.items()},
        "crop": list(build.layout.crop),
        "patch": build.layout.patch,
        "quality": dataclasses.asdict(flagging),
        **fixed,
        **({"withdrawn": sorted(gone)} if gone else {}),
        "training_statistics": {n: _summary(parts) for n, parts in _by_name(sums, "training")},
        "flag_counts": {
            n: {k: sum(p.get(k, 0) for p in parts) for k in {**parts[0], **parts[-1]}}
            for n, parts in _by_name(sums, "flags")
        },
        "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
        **_radar_quality(build),
        "identity": build.identity(),
        "build_state": build.state(),
    }
    attributes = {
        "Conventions": "CF-1.11",
        "title": "Crops and patches of gridded radar and satellite fields",
        "history": _history(build, commit.history, event),
        "gridrad_cube": info,
    }
    store.finish(commit, build, attributes, extends=extends, about={"blocks": blocks})


def _check_complete(build: Build, commit: store.Commit) -> None:
    """Refuse to write less than the store holds: the next commit would remove what plan or log have lost."""
    rows = commit.last.root.crops if commit.last else 0
    if build.rows < rows:
        raise SchemaError(
            f"{build.files.root}: the store holds {rows} crops, but its plan {build.rows}: a part of _build/plan is "
            "missing. The store can be read, and neither extended nor reflagged. Build a new one."
        )
    if lost := build.lost:
        raise SchemaError(
            f"{build.files.root}: the records of {len(lost)} sources are missing from _build/log ({lost[0]}, ...), so "
            "that the store stays as it is. Run again with these sources, or: "
            "gridrad-cube verify STORE --repair --source-root DIR"
        )


def _write_blocks(
    commit: store.Commit,
    build: Build,
    flagging: QualitySpec,
    thresholds: Mapping[str, Any],
    withdrawn: Set[str],
) -> tuple[dict[str, Any], bool]:
    """Write the changed blocks of the small arrays.

    Returns
    -------
    For every block by its first row, its inputs and its sums; and whether the crops that existed before have
    the same
    values.
    """
    before = commit.last.about.get("blocks", {}) if commit.last else {}
    judged_by = json.dumps([dataclasses.asdict(flagging), thresholds])

    def content(rows: range) -> str:
        here = [build.entries[n].source for n in _withdrawn(build, rows, withdrawn)]
        text = f"{build.state(rows)} {judged_by}{f' {here}' if here else ''}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    after: dict[str, Any] = {}
    extends = bool(before)
    for rows in store.blocks(build):
        known = before.get(str(rows.start))
        if known and known["content"] != content(rows[: known["rows"]]):
            known, extends = None, False
        if known and known["rows"] == len(rows) and store.keep_block(commit, build, rows):
            after[str(rows.start)] = known
            continue
        values = _gather(build, rows, flagging, withdrawn)
        sums: dict[str, Any] = {"training": {}, "flags": {}}
        for name, channel in build.layout.channels.items():
            outliers = quality.global_outliers(_statistics(values, channel), thresholds[name])
            values[f"{name}_flags"][outliers] |= np.uint16(Flag.global_outlier)
            flags = values[f"{name}_flags"]
            counts = {flag.name: int(np.count_nonzero(flags & int(flag))) for flag in Flag}
            sums["flags"][name] = {"patches": int(flags.size), **counts}
            sums["training"] |= _training_sums(channel, values)
        store.write_block(commit, build, rows, values)
        after[str(rows.start)] = {"content": content(rows), "rows": len(rows), "sums": sums}
    return after, extends


def is_finished(build: Build) -> bool:
    """Return whether the store exists, contains all that the log lists, and its last commit is complete.

    Parameters
    ----------
    build
        The build.

    Returns
    -------
    True if nothing is left to do.
    """
    try:
        root = store.read_root(build.files)
    except (SchemaError, FileNotFoundError):  # not finished yet, or damaged
        return False
    return root.keys == "default" and root.info.get("build_state") == build.state()


def _radar_quality(build: Build) -> dict[str, Any]:
    """Return the constants of the quality control of radar volumes; empty if the store has none."""
    has_radar = any(entry.format.startswith("gridrad") for entry in build.entries)
    if not has_radar or build.recipe.radar.qc == "none":
        return {}
    return {"radar_quality": dataclasses.asdict(quality.RadarQualitySpec.of(build.recipe.radar))}


def _statistics(values: Mapping[str, np.ndarray], channel: store.ChannelLayout) -> dict[str, np.ndarray]:
    names = statistics_of(channel.channel)
    return {statistic: values[f"{channel.name}_{statistic}"] for statistic in names}


def _gather(build: Build, rows: range, flagging: QualitySpec, withdrawn: Set[str]) -> dict[str, np.ndarray]:
    """Return every small variable of a block of rows, flagged again if the thresholds have changed since
    writing.
    """
    values = store.gather(build, rows)
    if flagging != build.recipe.quality:
        _flag_again(build, values, flagging)
    for number in _withdrawn(build, rows, withdrawn):
        own = build.entries[number].rows
        here = slice(max(own.start, rows.start) - rows.start, min(own.stop, rows.stop) - rows.start)
        for name in build.layout.channels:
            values[f"{name}_flags"][here] |= np.uint16(Flag.withdrawn)
            if f"{name}_histogram" in values:
                values[f"{name}_histogram"][here] = 0
    return values


def _withdrawn(build: Build, rows: range, withdrawn: Set[str]) -> list[int]:
    """Return the numbers of the entries of a block of rows whose source, or file, is withdrawn."""
    numbers = build.entries_of(rows) if withdrawn else ()
    return [n for n in numbers if not withdrawn.isdisjoint((build.entries[n].source, build.entries[n].file))]


def _flag_again(build: Build, values: dict[str, np.ndarray], flagging: QualitySpec) -> None:
    """Flag a block of rows by other thresholds than at writing."""
    angles = {
        name: values[name] for name in values if name.endswith(("zenith_angle", "zenith_angle_maximum"))
    }
    for name, channel in build.layout.channels.items():
        values[f"{name}_flags"] = quality.reflag(
            values[f"{name}_flags"],
            _statistics(values, channel),
            channel.channel,
            channel.packing,
            flagging,
            pixels=build.layout.patch**2,
            angles=angles,
        )


def _thresholds(build: Build, flagging: QualitySpec, withdrawn: Set[str]) -> dict[str, Any]:
    """Return the thresholds of global outliers. Only the means that they are computed from are held in
    memory.
    """
    means: dict[str, list[list[np.ndarray]]] = {name: [] for name in build.layout.channels}
    for rows in store.blocks(build):
        values = _gather(build, rows, flagging, withdrawn)
        for name, channel in build.layout.channels.items():
            flags = values[f"{name}_flags"]
            found = quality.global_population(_statistics(values, channel), flags, channel.channel, flagging)
            means[name].append(found)
    out: dict[str, Any] = {}
    for name, channel in build.layout.channels.items():
        levels = [np.concatenate(level) for level in zip(*means.pop(name), strict=True)]
        judged = [quality.thresholds_of(level, channel.channel, flagging) for level in levels]
        out[name] = {"levels": judged} if channel.altitudes_km else judged[0]
    return out


def _by_name(sums: Sequence[Mapping[str, Any]], kind: str) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield the sums of all blocks by channel or channel label."""
    for name in sums[0][kind]:
        yield name, [block[kind][name] for block in sums]


def _training_sums(
    channel: store.ChannelLayout, values: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Return the sums over the clean patches of a block of rows by channel label, in float64; None without
    patches.
    """
    flags, histogram = values[f"{channel.name}_flags"], values.get(f"{channel.name}_histogram")
    statistics = _statistics(values, channel)
    out = {}
    for level, altitude in enumerate(channel.altitudes_km or (None,)):
        pick = (slice(None), level) if altitude is not None else (slice(None),)
        clean = (flags[pick] & int(default_reject(channel.channel.kind))) == 0
        fraction = statistics["valid_fraction"][pick].astype(np.float64)
        if "echo_fraction" in statistics:
            fraction = fraction * statistics["echo_fraction"][pick]
        mean, std = (statistics[k][pick].astype(np.float64) for k in ("mean", "std"))
        use = clean & (fraction > 0) & np.isfinite(mean)
        weight = fraction[use]
        out[channel_label(channel.name, altitude)] = {
            "patches": int(clean.sum()),
            "weight": float(weight.sum()),
            "sum": float((weight * mean[use]).sum()),
            "squares": float((weight * (std[use] ** 2 + mean[use] ** 2)).sum()),
            "minimum": float(statistics["minimum"][pick][use].min()) if use.any() else None,
            "maximum": float(statistics["maximum"][pick][use].max()) if use.any() else None,
            "histogram": None if histogram is None else histogram[pick].sum(axis=0, dtype=np.int64).tolist(),
        }
    return out


def _summary(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the training statistics of one channel label from the sums of blocks; None without clean
    patches.
    """
    # cumsum adds in the order of the blocks; sum() differs between versions of Python in the last bit.
    patches, weight, total, squares = (
        np.cumsum([part[key] for part in parts])[-1].item() for key in ("patches", "weight", "sum", "squares")
    )
    out = {"patches": patches, **dict.fromkeys(("mean", "std", "minimum", "maximum", "histogram"))}
    if weight:
        seen = [part for part in parts if part["weight"]]
        out["mean"] = total / weight
        out["std"] = float(np.sqrt(max(squares / weight - out["mean"] ** 2, 0.0)))
        out["minimum"] = min(part["minimum"] for part in seen)
        out["maximum"] = max(part["maximum"] for part in seen)
        if parts[0]["histogram"] is not None:
            out["histogram"] = np.sum([part["histogram"] for part in parts], axis=0).tolist()
    return out


def _history(build: Build, old: str, event: str | None) -> str:
    stamp = np.datetime_as_string(np.datetime64("now", "s"), timezone="UTC")
    command = "convert" if build.recipe.format == "predecessor" else "preprocess"
    line = f"{stamp} gridrad-cube {event or f'{command}: {build.written} sources, {build.rows} crops'}"
    return f"{old}\n{line}" if old else line


def reflag(store: str | os.PathLike[str], spec: QualitySpec) -> None:
    """Flag a finished cube by other thresholds, from its stored statistics. No pixel and no source is read.

    Thresholds of global outliers are computed again from all scenes of the cube. The result is the same as
    that of a build with these thresholds, and scenes that are added later are flagged by them.

    Parameters
    ----------
    store
        Path or URL of the cube.
    spec
        The thresholds.

    Raises
    ------
    SchemaError
        If this is not a finished cube, or another process writes to it.
    """
    store_info(store, "patches")
    build = Build(store)
    with build.lease() as held:
        build = Build(store)
        damaged = build.missing()
        build.mend()
        held.check()
        finalize(build, spec, damaged=damaged)


def withdraw(store: str | os.PathLike[str], files: str | Sequence[str], *, undo: bool = False) -> list[str]:
    """Withdraw sources of a finished cube: their patches get the flag ``withdrawn``, which rejects by default.

    Nothing is deleted. Pixels, statistics and the thresholds of the store stay; training statistics leave the patches
    out. A source stays withdrawn when the store grows, is flagged again or repaired. Embeddings take the flags over
    when `embed` runs again.

    Parameters
    ----------
    store
        Path or URL of the cube.
    files
        Sources, each by the name that the coordinate ``source`` has, by a path that ends with it, or by the last part
        of it. ``FILE@TIME`` names one time of a file of several times.
    undo
        Take the withdrawal back.

    Returns
    -------
    The names of all sources that are withdrawn now, sorted.

    Raises
    ------
    SchemaError
        If this is not a finished cube, another process writes to it, it has no such source, several sources have this
        name, or a source is not withdrawn that should be taken back.
    """
    store_info(store, "patches")
    build = Build(store)
    with build.lease() as held:
        build = Build(store)
        before = set(store_info(store, "patches").get("withdrawn", ()))
        asked = {_source(build, name) for name in ([files] if isinstance(files, str) else files)}
        if undo and (kept := sorted(asked - before)):
            raise SchemaError(
                f"{build.files.root}: {kept[0]} is not withdrawn; expected one of {sorted(before) or 'none'}"
            )
        after = before - asked if undo else before | asked
        if after != before:
            damaged = build.missing()
            build.mend()
            held.check()
            event = f"{'take back' if undo else 'withdraw'}: {', '.join(sorted(asked))}"
            finalize(build, damaged=damaged, withdrawn=after, event=event)
    return sorted(after)


def _source(build: Build, name: str) -> str:
    """Return the source, or file, of a store that a user names."""
    names = {n for entry in build.entries for n in (entry.source, entry.file)}
    if name in names:
        return name
    found = sorted(n for n in names if n.endswith(f"/{name}") or name.endswith(f"/{n}"))
    if not found:
        raise SchemaError(
            f"{build.files.root}: no source {name!r}; expected a name of the coordinate source, such as "
            f"{build.entries[0].file!r}"
        )
    if len(found) > 1:
        raise SchemaError(
            f"{build.files.root}: {name!r} is the name of {len(found)} sources, {found[0]!r} and {found[1]!r} among "
            "them. Give the whole name."
        )
    return found[0]
