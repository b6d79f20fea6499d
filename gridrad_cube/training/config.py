"""The configuration of a training run: one frozen dataclass, read from defaults, a preset, a file and flags."""

from __future__ import annotations

# ruff: noqa: RUF009  (each default is made by `_option`, which calls dataclasses.field)
import dataclasses
import difflib
import importlib.resources
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from gridrad_cube.schema import SchemaError
from gridrad_cube.store import store_info
from gridrad_cube.training.values import coerce, flag

Level = Literal["256", "2k"]
Auto = Literal["auto"]


def _option(default: Any, group: str, help: str, *, unit: str = "", level: Level | None = None) -> Any:
    return dataclasses.field(
        default=default, metadata={"group": group, "help": help, "unit": unit, "level": level}
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a training run; `load_config` puts one together.

    The defaults are DINO's published ones, as the predecessor had them. ``auto`` is worked out from the size
    of the data set, the length of the run and the level, by `gridrad_cube.training.plan.make_plan`.
    """

    # fmt: off
    # data
    store: str = _option("", "data", "cube of patches (level 256) or embedding store (level 2k) to learn from")
    out: str = _option("", "data", "folder of checkpoints, metrics.jsonl and config.json")
    channels: tuple[str, ...] = _option((), "data", "channels to learn from; none means all of the store")
    channel_mode: Literal["auto", "each", "stack"] = _option(
        "auto", "data", "one channel a sample, or all channels of a patch stacked as input; auto stacks the "
        "altitudes of radar volumes", level="256")
    reject: tuple[str, ...] | None = _option(
        None, "data", "flags that keep a patch from training, or 'none'; default: the store's own list by channel")
    time: tuple[str, ...] = _option((), "data", "only crops from START to STOP (two ISO times, UTC)", unit="START STOP")
    bbox: tuple[float, ...] = _option(
        (), "data", "only patches with their centre inside", unit="WEST SOUTH EAST NORTH, degrees")
    coarsen: int = _option(1, "data", "average blocks of this edge before anything else", unit="pixels", level="256")
    num_workers: int = _option(1, "data", "batches read at a time, by all cores together", unit="batches")
    on_damage: Literal["raise", "skip"] = _option(
        "raise", "data", "stop at a patch that is missing or altered in the store, or leave it out", level="256")

    # network
    arch: str = _option("auto", "network", "vit_tiny, vit_small, vit_base, vit_demo; vit2k_xs, vit4k_xs for "
                        "embeddings; auto: vit_small or vit2k_xs")
    patch_size: int | Auto = _option("auto", "network", "edge of a token; auto: the network's own", unit="pixels",
                                     level="256")
    image_size: int | Auto = _option(
        "auto", "network", "edge for which positions are learned; auto: the global view, or the grid of cells",
        unit="pixels or cells")
    drop_path_rate: float = _option(0.1, "network", "stochastic depth of the student, at its last layer", unit="share")
    out_dim: int | Auto = _option(65536, "network", "prototypes K; auto: by the number of samples")
    norm_last_layer: bool = _option(True, "network", "keep prototypes at unit length (steadier, a little worse)")
    use_bn_in_head: bool = _option(False, "network", "batch normalisation in the head")
    head_hidden_dim: int = _option(2048, "network", "width of the head's hidden layers")
    dino_v1: bool = _option(
        False, "network", "compute as DINO's own program does: positions interpolated by its rule, no learned content "
        "for tokens of missing pixels, each gradient tensor clipped by itself, the teacher's temperature raised "
        "epoch by epoch")

    # objective
    objective: Literal["dino", "coding-rate"] = _option(
        "dino", "objective", "cross-entropy over prototypes, or coding rate (no prototypes, no temperatures)")
    warmup_teacher_temp: float | Auto = _option(
        0.04, "objective", "first temperature of the teacher; lower it if the loss stays at ln K")
    teacher_temp: float | Auto = _option(0.04, "objective", "temperature of the teacher after its warm-up; auto: by "
                                         "the number of samples")
    warmup_teacher_temp_epochs: float | Auto = _option(
        30, "objective", "length of that warm-up; auto: 37,500 steps, 30 % of the run at most", unit="epochs")

    # optimiser
    epochs: int = _option(100, "optimiser", "length of the run, unless --steps says it", unit="epochs")
    steps: int | None = _option(None, "optimiser", "length of the run in optimiser steps", unit="steps")
    batch_size_per_gpu: int = _option(64, "optimiser", "samples a step and process", unit="samples")
    accumulate: int = _option(
        1, "optimiser", "batches that make one step: for a larger step than fits into memory", unit="batches")
    optimizer: Literal["adamw", "sgd"] = _option("adamw", "optimiser", "adamw, or sgd with momentum 0.9")
    lr: float = _option(5e-4, "optimiser", "peak learning rate for a batch of 256; scaled with the batch")
    warmup_epochs: float | Auto = _option(
        10, "optimiser", "linear rise of the learning rate; auto: 12,500 steps, 10 % of the run at most", unit="epochs")
    min_lr: float = _option(1e-6, "optimiser", "learning rate at the end")
    weight_decay: float = _option(0.04, "optimiser", "weight decay at the start")
    weight_decay_end: float = _option(0.4, "optimiser", "weight decay at the end")
    momentum_teacher: float | Auto = _option(
        0.996, "optimiser", "the teacher keeps this share of itself at each step, rising to 1; auto: half of it is "
        "renewed in one epoch, or 177,000 samples")
    clip_grad: float = _option(3.0, "optimiser", "largest norm of the gradient; 0 is off")
    freeze_last_layer: float | Auto = _option(
        1, "optimiser", "prototypes stay as they are so long; auto: 1,250 steps, 5 % of the run at most", unit="epochs")
    precision: Literal["auto", "fp32", "bf16"] = _option(
        "auto", "optimiser", "of matrix products; losses and weights are fp32. auto: bf16 where the processor has it")

    # views
    views: Literal["zoom", "area"] = _option(
        "zoom", "views", "zoom: keep the scale of the field within --zoom and shift its values by up to 2 dB, 1 K or "
        "0.02 of reflectance; area: resize random areas, blur and solarize, as the predecessor does. Of grids, zoom "
        "takes parts with cells left out, area takes whole grids as global views")
    global_size: int = _option(224, "views", "edge of the global views", unit="pixels", level="256")
    local_size: int = _option(96, "views", "edge of the local views", unit="pixels", level="256")
    local_crops_number: int = _option(8, "views", "local views a sample")
    zoom: tuple[float, ...] = _option((0.8, 1.25), "views", "range of the random zoom", unit="LOW HIGH", level="256")
    global_crops_scale: tuple[float, ...] = _option(
        (0.4, 1.0), "views", "with --views area: share of the field a global view covers", unit="LOW HIGH", level="256")
    local_crops_scale: tuple[float, ...] = _option(
        (0.05, 0.4), "views", "with --views area: share of the field a local view covers", unit="LOW HIGH", level="256")
    flips: Literal["none", "h", "d4"] = _option(
        "none", "views", "mirror views: none, h left to right, d4 all symmetries of the square (not at level 2k); "
        "never those of wind and shear")
    temporal_positives: float = _option(
        0.0, "views", "draw the second global view from the same place so much later (the nearest time within half "
        "of that; samples without one use themselves); 0 is off", unit="minutes")

    # run
    seed: int = _option(0, "run", "of weights, order and views")
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "run", "auto takes a GPU where there is one")
    compile: bool = _option(
        False, "run", "compile the networks: needs a C++ compiler and a minute or more at the start")
    resume: str = _option("auto", "run", "auto: go on with the run in --out, if any; a checkpoint's path; never")
    init_from: str | None = _option(None, "run", "start from the weights of this checkpoint, as a new run")
    saveckp_freq: int = _option(20, "run", "keep a checkpoint for good every so many epochs; 0 is never", unit="epochs")
    save_minutes: float = _option(2.0, "run", "save at least every so many minutes; 0 is off", unit="minutes")
    log_steps: int = _option(20, "run", "write metrics every so many steps", unit="steps")
    tensorboard: bool = _option(
        False, "run", "write the metrics for TensorBoard too, into the folder tensorboard of --out")
    probe_steps: int | Auto = _option(
        "auto", "run", "embed some samples every so many steps and score how well a place finds itself an hour later; "
        "the best one's checkpoint is kept. 0 is off, auto takes 5 % of the samples at most", unit="steps")
    # fmt: on

    def __post_init__(self) -> None:
        for name, annotation in HINTS.items():
            object.__setattr__(self, name, coerce(name, getattr(self, name), annotation))
        if self.reject == ("none",):
            object.__setattr__(self, "reject", ())
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`, also for what an earlier version wrote; unknown keys are refused by name."""
        return cls(**canonical(upgrade(data, "config"), "config"))


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Config)}
HINTS: dict[str, Any] = get_type_hints(Config)

#: Other names of options, kept from the predecessor: canonical name, and what becomes of the value.
ALIASES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "data_path": ("store", lambda value: value),
    "output_dir": ("out", lambda value: value),
    "use_fp16": ("precision", lambda value: "bf16" if coerce("use_fp16", value, bool) else "fp32"),
}

#: Other names of networks, kept from the predecessor.
_ARCH_ALIASES = {"deit_tiny": "vit_tiny", "deit_small": "vit_small"}

#: Options of the predecessor that do nothing any more, and what does instead.
IDLE: dict[str, str] = {
    "save_best": "checkpoint_best.pth is kept in any case, the best by probe (--probe-steps), not by training loss",
    "dist_url": "processes find each other by what torchrun, srun or mpiexec set",
    "local_rank": "the rank is read from what torchrun, srun or mpiexec set",
}

#: Options of earlier versions, and the values at which they had no effect on what a run computes.
DROPPED: dict[str, Any] = {
    "limit": None, "shuffle_block": 1, "student_temp": 0.1, "center_momentum": 0.9, "coding_distortion": 0.05,
    "coding_weight": 1.0, "koleo": 0.0, "token_weight": 0.0, "magnification": 1.0, "row_dropout": 0.0,
    "local_fraction": 0.25, "temporal_share": 1.0,
}  # fmt: skip
#: Options of earlier versions that had no effect at any value.
_WITHOUT_EFFECT = ("cache", "cache_gib", "token_share", "save_steps", "keep_checkpoints")
#: Options of earlier versions that one option replaces: level, option, and of each of its values what it stands for.
#: The first value stands for the defaults of that time.
_MERGED: tuple[tuple[Level | None, str, dict[Any, dict[str, Any]]], ...] = (
    (None, "dino_v1", {
        False: {"position": "exact", "mask_tokens": True, "clip_by": "global", "teacher_temp_by": "step"},
        True: {"position": "dino_v1", "mask_tokens": False, "clip_by": "tensor", "teacher_temp_by": "epoch"},
    }),
    ("256", "views", {
        "zoom": {"views": "zoom", "gain": 1.0, "blur": [0.0, 0.0, 0.0], "solarize": 0.0},
        "area": {"views": "area", "gain": 0.0, "blur": [1.0, 0.1, 0.5], "solarize": 0.2},
    }),
    ("2k", "views", {
        "zoom": {"global_fraction": 0.75, "token_dropout": 0.25},
        "area": {"global_fraction": 1.0, "token_dropout": 0.0},
    }),
)  # fmt: skip

#: Options that there are no more, and what there is instead.
REMOVED: dict[str, str] = {
    "arch2k": "the network of level 2k is --arch when --store holds embeddings",
    **dict.fromkeys((*DROPPED, *_WITHOUT_EFFECT), "runs have what was its default"),
    **{
        old: f"see {flag(name)}"
        for _, name, choices in _MERGED
        for choice in choices.values()
        for old in choice
        if old != name
    },
}


def upgrade(options: Mapping[str, Any], where: object, level: Level | None = None) -> dict[str, Any]:
    """Express options that an earlier version wrote by those that there are.

    Parameters
    ----------
    options
        Of a ``config.json`` or a checkpoint.
    where
        What they come from, for messages.
    level
        That they were for; their store says it if None.

    Raises
    ------
    SchemaError
        If the run was made with an option that there is no more.
    """
    out = {name: value for name, value in options.items() if name not in _WITHOUT_EFFECT}
    old = [name for name in out if name in REMOVED]
    if not old:
        return out
    level = level or store_level(str(out["store"]))
    refused = [name for name in DROPPED if out.pop(name, DROPPED[name]) != DROPPED[name]]
    for at, name, choices in _MERGED:
        defaults = next(iter(choices.values()))
        given = {k: out.pop(k) for k in defaults if k in out and (k != name or at == level)}
        if at in (None, level) and given.keys() - {name}:
            matching = [value for value, choice in choices.items() if choice == defaults | given]
            out[name] = matching[0] if matching else None
            refused += [] if matching else [k for k in given if given[k] != defaults[k]]
    if refused:
        made = ", ".join(f"{flag(name)} {options[name]}" for name in refused)
        raise SchemaError(
            f"{where}: of an earlier version, with {made}; expected the defaults of these options, which there are no "
            "more. Finish the run with the version that started it, or start a new one with --init-from."
        )
    return out


def canonical(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options under their own names, aliases and dashes resolved.

    Raises
    ------
    SchemaError
        If an option is unknown; names those that are spelled alike.
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in ALIASES:
            name, convert = ALIASES[name]
            value = convert(value)
        if name == "arch":
            value = _ARCH_ALIASES.get(value, value)
        if name not in FIELDS:
            raise SchemaError(f"{where}: {unknown_option(name)}")
        out[name] = value
    return out


def unknown_option(name: str) -> str:
    """A sentence about an option that there is not."""
    name = name.lstrip("-").replace("-", "_")
    if name in REMOVED:
        return f"there is no option {flag(name)} any more: {REMOVED[name]}"
    near = difflib.get_close_matches(name, [*FIELDS, *ALIASES, "preset", "config"], n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(flag(n) for n in near)}?" if near else "see --help for the list"
    return f"unknown option {flag(name)}; {hint}"


def presets() -> dict[str, Path]:
    """The recipes that come with the package: name and file."""
    folder = Path(str(importlib.resources.files("gridrad_cube.training") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_options(path: str | os.PathLike[str], level: Level) -> dict[str, Any]:
    """Options in a TOML file: its top level, then its table ``[level.256]`` or ``[level.2k]``.

    Raises
    ------
    SchemaError
        If it is no TOML file or holds an unknown option.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SchemaError(f"{path}: no such file. Pass --preset with one of {sorted(presets())}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"{path}: not a TOML file ({error})") from None
    tables = data.pop("level", {})
    unknown = sorted(set(tables) - set(get_args(Level)))
    if unknown:
        raise SchemaError(f"{path}: unknown table [level.{unknown[0]}]; expected [level.256] or [level.2k]")
    return canonical(data, str(path)) | canonical(tables.get(level, {}), str(path))


@contextmanager
def named_refusals() -> Iterator[None]:
    """Turn a ValueError about a value that came from the configuration into a `SchemaError`."""
    try:
        yield
    except SchemaError:
        raise
    except ValueError as error:
        raise SchemaError(f"config: {error}") from error


def store_level(store: str) -> Level:
    """Which level a store trains: ``"256"`` for a cube of patches, ``"2k"`` for its embeddings.

    Raises
    ------
    FileNotFoundError, SchemaError
        If it is no finished store, or holds the embeddings of level 2k, above which there is none.
    """
    info = store_info(store)
    if info.get("kind") == "patches":
        return "256"
    if info.get("kind") == "embeddings" and info.get("level") == "256":
        return "2k"
    raise SchemaError(
        f"{store}: holds {info.get('kind')} of level {info.get('level')}, got no level above it to train; expected "
        "a cube of patches, or embeddings of level 256. Pass one of these as --store."
    )


def load_config(
    *,
    level: Level | None = None,
    preset: str = "small",
    file: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Config:
    """Put a configuration together: default, then preset, then file, then options.

    Parameters
    ----------
    level
        Which tables of the files count; the store says it if None.
    preset
        Name of a recipe that comes with the package, or ``"none"``.
    file
        A TOML file.
    options
        Fields of `Config`, or their aliases.

    Raises
    ------
    SchemaError
        If an option, preset or value is unknown.
    """
    options = canonical(options, "options")
    if level is None:
        level = store_level(options.get("store") or _store_in(file))
    values: dict[str, Any] = {}
    if preset != "none":
        known = presets()
        if preset not in known:
            raise SchemaError(f"--preset: got {preset!r}; expected one of {sorted(known)} or none")
        values |= read_options(known[preset], level)
    if file is not None:
        values |= read_options(file, level)
    return Config(**values | options)


def _store_in(file: str | os.PathLike[str] | None) -> str:
    store = read_options(file, "256").get("store") if file is not None else None
    if not store:
        raise SchemaError("--store: missing. Pass the cube of patches or the embedding store to learn from.")
    return str(store)


_RANGES = ("zoom", "global_crops_scale", "local_crops_scale")
_POSITIVE = (
    "coarsen", "batch_size_per_gpu", "accumulate",
    "epochs", "global_size", "local_size", "head_hidden_dim", "log_steps", "lr",
)  # fmt: skip


def _check(config: Config) -> None:
    for name, sizes in {**dict.fromkeys(_RANGES, (2,)), "time": (0, 2), "bbox": (0, 4)}.items():
        if len(getattr(config, name)) not in sizes:
            raise SchemaError(f"{flag(name)}: got {len(getattr(config, name))} values; expected {sizes[-1]}")
    for name in _POSITIVE:
        if not getattr(config, name) > 0:
            raise SchemaError(f"{flag(name)}: got {getattr(config, name)}; expected a number above 0")
    for name in ("steps", "temporal_positives", "probe_steps"):
        value = getattr(config, name)
        if isinstance(value, int | float) and value < 0:
            raise SchemaError(f"{flag(name)}: got {value}; expected at least 0")
