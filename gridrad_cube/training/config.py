"""The options of a training run, and the numbers that are derived from them and the size of the data set."""

from __future__ import annotations

# ruff: noqa: RUF009  (each default is made by `_option`, which calls dataclasses.field)
import dataclasses
import difflib
import importlib.resources
import logging
import os
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gridrad_cube.schema import SchemaError
from gridrad_cube.store import store_info

logger = logging.getLogger(__name__)

Level = Literal["256", "2k"]
_Auto = Literal["auto"]
#: Each of START and STOP, or of one time that names a day, a month or a year.
TimeRanges = tuple[tuple[str, ...], ...]


def _option(default: Any, group: str, help: str, *, unit: str = "", level: Level | None = None) -> Any:
    return dataclasses.field(
        default=default, metadata={"group": group, "help": help, "unit": unit, "level": level}
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All options of a training run; `load_config` makes one.

    The defaults are those of the DINO paper. `make_plan` replaces ``auto`` by a value for the size of the
    data set, the length of the run and the level.

    Raises
    ------
    SchemaError
        If a value does not fit its option.
    """

    # fmt: off
    # recipe
    preset: str = _option("none", "recipe", "the recipe that the other options started from; `load_config` sets it")

    # data
    store: str = _option("", "data", "cube of patches (level 256) or embedding store (level 2k) to learn from")
    out: str = _option("", "data", "folder of checkpoints, metrics.jsonl and config.json")
    channels: tuple[str, ...] = _option((), "data", "channels to learn from; default: all of the store")
    channel_mode: Literal["auto", "each", "stack"] = _option(
        "auto", "data", "one channel a sample, or all channels of a patch stacked as input; auto stacks the altitudes "
        "of radar volumes", level="256")
    reject: tuple[str, ...] | None = _option(
        None, "data", "flags that keep a patch from training, or 'none'; default: the store's list of each channel")
    time: TimeRanges = _option(
        (), "data", "only crops from START to STOP (UTC), STOP not included, or of one day, month or year; may be "
        "given several times", unit="START STOP")
    exclude_time: TimeRanges = _option(
        (), "data", "leave out the crops of such a time; may be given several times", unit="START STOP")
    bbox: tuple[float, ...] = _option((), "data", "only patches with their center inside; degrees",
                                      unit="WEST SOUTH EAST NORTH", level="256")
    coarsen: int | _Auto = _option(
        1, "data", "average blocks of this edge before anything else; auto: a patch becomes as large as the "
        "images that the network is for", unit="pixels", level="256")
    limit: int | None = _option(None, "data", "the first samples only, for a quick look", unit="samples")
    num_workers: int = _option(1, "data", "batches that are read at the same time, each by all cores", unit="batches")
    on_damage: Literal["raise", "skip"] = _option(
        "raise", "data", "stop at a patch that is missing or altered in the store, or leave it out", level="256")

    # network
    arch: str = _option("auto", "network", "vit_tiny, vit_small, vit_base, vit_demo, vit_mini; vit2k_xs, vit4k_xs "
                        "for embeddings; auto: vit_small or vit2k_xs")
    patch_size: int | _Auto = _option("auto", "network", "edge of a token; auto: that of the network", unit="pixels",
                                     level="256")
    image_size: int | _Auto = _option(
        "auto", "network", "edge for which positions are learned, in pixels or cells; auto: the global view, or the "
        "grid of cells", unit="edge")
    stem: Literal["linear", "scattering"] = _option(
        "linear", "network", "what a token is made of: its pixels, or local scattering maps of the field, which change "
        "little when the field moves", level="256")
    pool: Literal["class", "mean", "mean+std", "projection"] = _option(
        "class", "network", "the embedding of a sample: class token, mean of the other tokens, their mean and standard "
        "deviation, or what the head of the contrast makes of these two")
    drop_path_rate: float = _option(0.1, "network", "stochastic depth of the student, at its last layer")
    out_dim: int | _Auto = _option(65536, "network", "prototypes K; auto: by the number of samples")
    norm_last_layer: bool = _option(True, "network", "keep prototypes at unit length (steadier, a little worse)")
    use_bn_in_head: bool = _option(False, "network", "batch normalization in the head")
    head_hidden_dim: int = _option(2048, "network", "width of the hidden layers of the head")
    dino_v1: bool = _option(
        False, "network", "compute as the program of DINO does: positions interpolated by its rule, no learned content "
        "for tokens of missing pixels, each gradient tensor clipped by itself, the temperature of the teacher raised "
        "epoch by epoch")

    # objective
    objective: Literal["dino", "coding-rate", "contrast"] = _option(
        "dino", "objective", "dino: cross-entropy over prototypes; coding-rate: no prototypes, no temperatures; "
        "contrast: a window finds the window of the same place at a near time among others (level 256). An option that "
        "only DINO uses, such as --teacher-temp, takes the preset dino unless this option is given")
    contrast_weight: float = _option(
        0.0, "objective", "weight of the contrast term beside dino or coding-rate", level="256")
    temperature: float = _option(0.1, "objective", "temperature of the contrast", level="256")
    move: int | _Auto = _option(
        "auto", "objective", "with the contrast: largest offset of the partner's window; auto: half a patch",
        unit="pixels", level="256")
    warmup_teacher_temp: float | _Auto = _option(
        0.04, "objective", "first temperature of the teacher; lower it if the loss stays at ln K")
    teacher_temp: float | _Auto = _option(0.04, "objective", "temperature of the teacher after its warm-up; auto: by "
                                         "the number of samples")
    warmup_teacher_temp_epochs: float | _Auto = _option(
        30, "objective", "length of that warm-up; auto: 37,500 steps, 30 % of the run at most", unit="epochs")

    # optimizer
    epochs: int = _option(100, "optimizer", "length of the run, unless --steps is given", unit="epochs")
    steps: int | None = _option(None, "optimizer", "length of the run in optimizer steps", unit="steps")
    batch_size_per_gpu: int = _option(64, "optimizer", "samples per process and batch", unit="samples")
    accumulate: int = _option(
        1, "optimizer", "batches that make one step: for a larger step than fits into memory", unit="batches")
    optimizer: Literal["adamw", "sgd"] = _option("adamw", "optimizer", "adamw, or sgd with momentum 0.9")
    lr: float = _option(5e-4, "optimizer", "peak learning rate for a batch of 256; scaled with the batch")
    warmup_epochs: float | _Auto = _option(
        10, "optimizer", "linear rise of the learning rate; auto: 12,500 steps, 10 % of the run at most", unit="epochs")
    min_lr: float = _option(1e-6, "optimizer", "learning rate at the end")
    weight_decay: float = _option(0.04, "optimizer", "weight decay at the start")
    weight_decay_end: float = _option(0.4, "optimizer", "weight decay at the end")
    momentum_teacher: float | _Auto = _option(
        0.996, "optimizer", "share of itself that the teacher keeps at each step, rising to 1; auto: half of it is "
        "renewed in one epoch, or 177,000 samples")
    clip_grad: float = _option(3.0, "optimizer", "largest norm of the gradient; 0 is off")
    freeze_last_layer: float | _Auto = _option(
        1, "optimizer", "time in which prototypes stay as they are; auto: 1,250 steps, 5 % of the run at most",
        unit="epochs")
    precision: Literal["auto", "fp32", "bf16"] = _option(
        "auto", "optimizer", "of matrix products; losses and weights are fp32. auto: bf16 where the processor has it")

    # views
    views: Literal["zoom", "area"] = _option(
        "zoom", "views", "zoom: keep the scale of the field within --zoom and shift its values by up to 2 dB, 1 K or "
        "0.02 of reflectance; area: resize random areas, blur and solarize, as the predecessor does. Of grids, zoom "
        "takes parts with cells left out, area takes whole grids as global views")
    global_size: int = _option(224, "views", "edge of the global views", unit="pixels", level="256")
    local_size: int = _option(96, "views", "edge of the local views", unit="pixels", level="256")
    local_crops_number: int = _option(8, "views", "local views of a sample")
    zoom: tuple[float, ...] = _option((0.8, 1.25), "views", "range of the random zoom", unit="LOW HIGH", level="256")
    global_crops_scale: tuple[float, ...] = _option(
        (0.4, 1.0), "views", "with --views area: share of the field that a global view covers", unit="LOW HIGH",
        level="256")
    local_crops_scale: tuple[float, ...] = _option(
        (0.05, 0.4), "views", "with --views area: share of the field that a local view covers", unit="LOW HIGH",
        level="256")
    flips: Literal["none", "h", "d4"] = _option(
        "none", "views", "mirror views: none, h left to right, d4 all symmetries of the square (not at level 2k); "
        "never those of wind and shear")
    offset: float | None = _option(
        None, "views", "largest random offset of the values of a view, in the numbers that the network reads (with the "
        "scattering stem -1 to 1 is the typical range of a channel); default: 2 dB, 1 K or 0.02 of reflectance",
        level="256")
    temporal_positives: tuple[float, ...] = _option(
        (), "views", "draw the second global view from the same place this much later (the nearest time within half of "
        "that; samples without one use themselves); 0 is off. Pairs of the contrast take one of several leads at "
        "random, by default one to three time steps of the store; 0 pairs windows of the same time", unit="minutes")

    # run
    seed: int = _option(0, "run", "of weights, order and views")
    device: str = _option("auto", "run", "auto (a GPU where there is one), cpu, cuda or cuda:N")
    compile: bool = _option(
        False, "run", "compile the networks: needs a C++ compiler and some minutes at the start")
    resume: str = _option("auto", "run", "auto: resume the run in --out, if there is one; the path of a checkpoint; "
                          "never")
    init_from: str | None = _option(None, "run", "start a new run from the weights of this checkpoint")
    saveckp_freq: int = _option(20, "run", "keep a checkpoint every this many epochs; 0 is never", unit="epochs")
    save_minutes: float = _option(2.0, "run", "save at least every this many minutes; 0 is off", unit="minutes")
    log_steps: int = _option(20, "run", "write metrics every this many steps", unit="steps")
    probe_steps: int | _Auto = _option(
        "auto", "run", "embed some samples every this many steps and score how well a place finds itself an hour "
        "later; the checkpoint of the best is kept. 0 is off, auto takes 5 % of the samples at most", unit="steps")
    # fmt: on

    def __post_init__(self) -> None:
        for name, kind in HINTS.items():
            object.__setattr__(self, name, _coerce(name, getattr(self, name), kind))
        if self.reject == ("none",):
            object.__setattr__(self, "reject", ())
        leads = tuple(m for m in self.temporal_positives if m or self.pairs_windows)
        object.__setattr__(self, "temporal_positives", leads)
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict of JSON types.

        Returns
        -------
        Values by name.
        """
        return {name: _as_json(value) for name, value in dataclasses.asdict(self).items()}

    @property
    def pairs_windows(self) -> bool:
        """True if samples are pairs of windows, as the contrast needs them."""
        return self.objective == "contrast" or self.contrast_weight > 0

    @property
    def objectives(self) -> str:
        """The terms of the loss, for the log."""
        return self.objective + (f" + {self.contrast_weight:g} x contrast" if self.contrast_weight else "")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: object = "config") -> Config:
        """Return the inverse of `to_dict`, also for options that an earlier version wrote; ``where`` is for
        errors.
        """
        return cls(**_canonical(_upgrade(data, where), where))


def _as_json(value: Any) -> Any:
    return [_as_json(part) for part in value] if isinstance(value, tuple) else value


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Config)}
HINTS: dict[str, Any] = get_type_hints(Config)

#: Other names of options, kept from the predecessor: the name here, and the conversion of the value.
ALIASES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "data_path": ("store", lambda value: value),
    "output_dir": ("out", lambda value: value),
    "use_fp16": ("precision", lambda value: "bf16" if _coerce("use_fp16", value, bool) else "fp32"),
}
#: Other names of networks, kept from the predecessor.
_ARCH_ALIASES = {"deit_tiny": "vit_tiny", "deit_small": "vit_small"}

#: Options of the predecessor that have no effect, and why.
IDLE: dict[str, str] = {
    "save_best": "checkpoint_best.pth is kept in any case, the best by probe (--probe-steps), not by training loss",
    "dist_url": "processes find each other by what torchrun, srun or mpiexec set",
    "local_rank": "the rank is read from what torchrun, srun or mpiexec set",
}

#: Options of DINO only. If one of them is given without an objective, the objective is DINO.
_OF_DINO = (
    "out_dim", "norm_last_layer", "warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs",
    "freeze_last_layer",
)  # fmt: skip

#: Options of earlier versions, and their defaults, which every run has now.
_REMOVED: dict[str, Any] = {
    "position": "exact", "mask_tokens": True, "clip_by": "global", "teacher_temp_by": "step",
    "gain": 1.0, "blur": [0.0, 0.0, 0.0], "solarize": 0.0, "global_fraction": 0.75, "token_dropout": 0.25,
    "shuffle_block": 1, "student_temp": 0.1, "center_momentum": 0.9, "coding_distortion": 0.05, "coding_weight": 1.0,
    "koleo": 0.0, "token_weight": 0.0, "magnification": 1.0, "row_dropout": 0.0, "local_fraction": 0.25,
    "temporal_share": 1.0,
}  # fmt: skip
#: Values of these options in the preset predecessor, and the option that stands for them now.
_MERGED: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    (
        {"position": "dino_v1", "mask_tokens": False, "clip_by": "tensor", "teacher_temp_by": "epoch"},
        {"dino_v1": True},
    ),
    ({"views": "area", "gain": 0.0, "blur": [1.0, 0.1, 0.5], "solarize": 0.2}, {"views": "area"}),
    ({"global_fraction": 1.0, "token_dropout": 0.0}, {"views": "area"}),
)
#: Options of earlier versions that did not change what a run computes.
_WITHOUT_EFFECT = ("cache", "cache_gib", "token_share", "save_steps", "keep_checkpoints", "tensorboard")


def flag_of(name: str) -> str:
    """Return an option as messages name it."""
    return f"`{name}`"


def unknown_option(name: str) -> str:
    """Return a sentence about an unknown option, with options of similar spelling.

    Parameters
    ----------
    name
        Name of the option.

    Returns
    -------
    The sentence.
    """
    name = name.lstrip("-").replace("-", "_")
    if name == "arch2k":
        return "option `arch2k` no longer exists: the network of level 2k is `arch` when `store` holds embeddings"
    if name in _REMOVED or name in _WITHOUT_EFFECT:
        return f"option {flag_of(name)} no longer exists; see `dino_v1` and `views` for the recipe of the predecessor"
    near = difflib.get_close_matches(name, [*FIELDS, *ALIASES, "preset", "config"], n=3, cutoff=0.6)
    hint = (
        f"did you mean {', '.join(flag_of(n) for n in near)}?"
        if near
        else "see gridrad-cube train --help-all for the list"
    )
    return f"unknown option {flag_of(name)}; {hint}"


def _canonical(values: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Return the options under their own names, aliases and dashes resolved; an unknown one is refused."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in ALIASES:
            name, convert = ALIASES[name]
            value = convert(value)
        if name not in FIELDS:
            raise SchemaError(f"{where}: {unknown_option(name)}")
        out[name] = _ARCH_ALIASES.get(value, value) if name == "arch" else value
    return out


def _upgrade(options: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Express the options of a ``config.json`` or checkpoint of an earlier version by those that exist now.

    A value of an option that no longer exists is refused if it cannot be expressed so.
    """
    kept = {name: value for name, value in options.items() if name not in _WITHOUT_EFFECT}
    if not _REMOVED.keys() & kept.keys():
        return kept
    merged: dict[str, Any] = {}
    for old, new in _MERGED:
        if all(kept.get(name) == value for name, value in old.items()):
            merged |= new
            kept = {name: value for name, value in kept.items() if name not in old}
    defaults = _REMOVED | {"views": "zoom"}  # area stood for less than it does now
    refused = [
        f"{flag_of(n)} {kept[n]}" for n, default in defaults.items() if kept.get(n, default) != default
    ]
    if refused:
        raise SchemaError(
            f"{where}: of an earlier version, with {', '.join(refused)}; expected the defaults of the options that no "
            "longer exist, or the preset predecessor. Finish the run with the version that started it, or start a new "
            "one with `init_from`."
        )
    return {name: value for name, value in kept.items() if name not in _REMOVED} | merged


# values


def _coerce(name: str, value: Any, kind: Any) -> Any:
    """Return a value in the type of its field: numbers from text, tuples from lists or text with commas."""
    try:
        return _convert(value, kind)
    except (TypeError, ValueError):
        raise SchemaError(f"{flag_of(name)}: got {value!r}; expected {_describe(kind)}") from None


def _convert(value: Any, kind: Any) -> Any:
    choices = get_args(kind)
    if get_origin(kind) is Literal and value in choices:
        return value
    if kind == TimeRanges:
        return _as_ranges(value)
    if get_origin(kind) is tuple:
        value = [value] if isinstance(value, int | float) else value
        parts = value.split(",") if isinstance(value, str) else value
        if choices[0] is str:
            parts = [word for part in parts for word in str(part).split(",")]
        return tuple(_convert(part, choices[0]) for part in parts if part != "")
    if get_origin(kind) in (Union, types.UnionType):
        for choice in choices:
            try:
                return _convert(value, choice)
            except (TypeError, ValueError):
                continue
    if kind is types.NoneType and value is None:
        return None
    if kind is bool and str(value).lower() in _WORDS:
        return _WORDS[str(value).lower()]
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if kind in (int, float) and not isinstance(value, bool) and (kind is float or float(value) == int(value)):
        return kind(value)
    raise ValueError


_WORDS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


def _as_ranges(value: Any) -> TimeRanges:
    """Return the time ranges: one time, START and STOP, several such pairs one after another, or a list of
    any of these.
    """
    parts = value.split(",") if isinstance(value, str) else [*value]
    if any(isinstance(part, list | tuple) for part in parts):
        return tuple(
            one for part in parts for one in _as_ranges(part if isinstance(part, list | tuple) else [part])
        )
    texts = [str(part) for part in parts if part != ""]
    if len(texts) == 1:
        return ((texts[0],),)
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _describe(kind: Any) -> str:
    """Return a text on the valid values of a field."""
    choices = [choice for choice in get_args(kind) if choice is not types.NoneType]
    if get_origin(kind) is Literal:
        return " or ".join(choices) if len(choices) < 3 else "one of " + ", ".join(choices)
    if kind == TimeRanges:
        return "a day, or pairs of START and STOP"
    if get_origin(kind) is tuple:
        return "words" if choices[0] is str else "numbers"
    if choices:
        return " or ".join(_describe(choice) for choice in choices)
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]


_SIZES = {
    "bbox": (0, 4),
    "zoom": (2,),
    "global_crops_scale": (2,),
    "local_crops_scale": (2,),
}
_POSITIVE = (
    "coarsen", "batch_size_per_gpu", "accumulate", "epochs", "global_size", "local_size", "head_hidden_dim",
    "limit", "log_steps", "lr", "patch_size", "image_size", "out_dim", "temperature",
)  # fmt: skip
_NOT_NEGATIVE = (
    "steps", "temporal_positives", "probe_steps", "local_crops_number", "contrast_weight", "move",
    "offset",
)  # fmt: skip


def _check(config: Config) -> None:
    for name, sizes in _SIZES.items():
        values = getattr(config, name)
        if len(values) not in sizes:
            raise SchemaError(f"{flag_of(name)}: got {len(values)} values; expected {sizes[-1]}")
        if sizes == (2,) and not 0 < values[0] <= values[1]:
            raise SchemaError(f"{flag_of(name)}: got {values[0]} {values[1]}; expected 0 < LOW <= HIGH")
    for names, least, words in ((_POSITIVE, 1e-300, "a number above 0"), (_NOT_NEGATIVE, 0, "at least 0")):
        for name in names:
            value = getattr(config, name)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, int | float) and not one >= least:
                    raise SchemaError(f"{flag_of(name)}: got {one}; expected {words}")
    if config.objective == "contrast" and config.contrast_weight:
        raise SchemaError(
            "`contrast_weight`: the objective is the contrast itself. Leave it out, or pass `objective='dino'` or "
            "coding-rate, beside which the contrast is a term."
        )
    if config.pool == "projection" and not config.pairs_windows:
        raise SchemaError(
            "`pool`: got 'projection', the head of the contrast, which this objective does not train. Pass "
            "`objective='contrast'`, or `contrast_weight` above 0, or another `pool`."
        )


# recipes


def list_presets() -> dict[str, Path]:
    """Return the recipes that come with the package: name and file.

    Returns
    -------
    Path by name.
    """
    folder = Path(str(importlib.resources.files("gridrad_cube.training") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _read_options(path: str | os.PathLike[str], level: Level) -> dict[str, Any]:
    """Return the options in a TOML file: its top level, then its table ``[level.256]`` or ``[level.2k]``."""
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SchemaError(
            f"{path}: no such file. Pass `preset` with one of {sorted(list_presets())}."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"{path}: not a TOML file ({error})") from None
    if "preset" in data:
        raise SchemaError(f"{path}: a file holds options over those of a preset. Pass `preset` beside it.")
    tables = data.pop("level", {})
    unknown = sorted(set(tables) - set(get_args(Level)))
    if unknown:
        raise SchemaError(f"{path}: unknown table [level.{unknown[0]}]; expected [level.256] or [level.2k]")
    return _canonical(data, path) | _canonical(tables.get(level, {}), path)


def store_level(store: str) -> Level:
    """Return the level that a store trains: ``"256"`` for a cube of patches, ``"2k"`` for embeddings of level
    256.

    Parameters
    ----------
    store
        Path or URL of the store.

    Returns
    -------
    The level.

    Raises
    ------
    FileNotFoundError, SchemaError
        If it is not a finished store, or holds embeddings of level 2k, which is the highest level.
    """
    info = store_info(store)
    if info.get("kind") == "patches":
        return "256"
    if info.get("kind") == "embeddings" and info.get("level") == "256":
        return "2k"
    raise SchemaError(
        f"{store}: holds {info.get('kind')} of level {info.get('level')}, above which no level trains; expected a "
        "cube of patches, or embeddings of level 256. Pass one of these as `store`."
    )


def load_config(
    *,
    level: Level | None = None,
    preset: str = "small",
    file: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Config:
    """Make a configuration from, in this order: defaults, preset, file, options.

    If file or options name an option of DINO only, and no objective, the preset ``"dino"`` replaces one of
    another objective.

    Parameters
    ----------
    level
        Level of the tables in the files; None for that of the store.
    preset
        Name of a recipe that comes with the package, or ``"none"``.
    file
        A TOML file.
    options
        Fields of `Config`, or their aliases.

    Returns
    -------
    The configuration.

    Raises
    ------
    SchemaError
        If an option, preset or value is unknown.
    """
    options = _canonical(options, "options")
    if level is None:
        store = options.get("store") or (
            _read_options(file, "256").get("store") if file is not None else None
        )
        if not store:
            raise SchemaError(
                "`store`: missing. Pass the cube of patches or the embedding store to learn from."
            )
        level = store_level(str(store))
    given = options if file is None else _read_options(file, level) | options
    recipe: dict[str, Any] = {}
    if preset != "none":
        known = list_presets()
        if preset not in known:
            raise SchemaError(f"`preset`: got {preset!r}; expected one of {sorted(known)} or none")
        recipe = _read_options(known[preset], level)
        of_dino = ", ".join(flag_of(name) for name in _OF_DINO if name in given)
        if of_dino and "objective" not in given and recipe.get("objective", "dino") != "dino":
            logger.info(
                "`preset='dino'`, not %s: only DINO uses %s. `objective` chooses another objective",
                preset,
                of_dino,
            )
            preset, recipe = "dino", _read_options(known["dino"], level)
        elif of_dino and given.get("objective", "dino") != "dino":
            logger.warning("no effect with `objective='%s'`: %s", given["objective"], of_dino)
        recipe = _fit_objective(recipe, given)
    if "epochs" in given and "steps" not in given:
        recipe.pop("steps", None)  # or the epochs that are asked for would have no effect
    return Config(**recipe | given | {"preset": preset})


def _fit_objective(recipe: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without what only its own objective has, where the given options ask for another one."""
    own = recipe.get("objective", "dino")
    asked = given.get("objective", own)
    if asked == own:
        return recipe
    dropped: tuple[str, ...] = ("contrast_weight",) if asked == "contrast" else ()
    if own == "contrast" and not given.get("contrast_weight"):
        dropped = ("pool", "temporal_positives")
    return {name: value for name, value in recipe.items() if name not in dropped}
