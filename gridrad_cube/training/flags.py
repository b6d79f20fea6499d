"""The command line of training: every flag is a field of `Config`, its help the field's own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from gridrad_cube.launch import find_world
from gridrad_cube.schema import SchemaError
from gridrad_cube.training.config import (
    FIELDS,
    HINTS,
    IDLE,
    REMOVED,
    Config,
    canonical,
    load_config,
    presets,
    store_level,
    unknown_option,
)
from gridrad_cube.training.engine import TrainingError, train
from gridrad_cube.training.values import flag

_DESCRIPTION = """\
Train a vision transformer without labels, straight from a store. The store says which level: a cube of
patches trains level 256, an embedding store (gridrad-cube embed) trains level 2k.

Only --store and --out are needed. A first change is mostly to --channels, --epochs and --batch-size-per-gpu
(as much as fits into memory); whether it learns is in metrics.jsonl (see docs/training.md).
"""

#: What the groups of options are about.
_GROUPS = {
    "recipe": "Where the numbers come from that are not given; the defaults below are those of --preset small.",
    "data": "What to learn from, and how it is read.",
    "network": "What learns. A checkpoint keeps all of this, so that embedding needs none of it.",
    "objective": "What is learned: that views of one patch belong together. A teacher, the average of past "
    "students, says what a student has to answer for another view.",
    "optimiser": "How fast and for how long. Warm-ups may last a fraction of an epoch.",
    "views": "What two views of a patch differ in is what the network learns to ignore.",
    "run": "Where it runs, and what it leaves.",
}

_EPILOG = """\
examples:
  learn from a cube, with the recipe for small data sets
    {prog} --store patches.zarr --out runs/256
  the second level, from the embeddings of the first
    gridrad-cube embed --store patches.zarr --checkpoint runs/256/checkpoint.pth --out embeddings.zarr
    {prog} --store embeddings.zarr --out runs/2k
  four GPUs of one machine
    torchrun --nproc-per-node 4 {script} --store patches.zarr --out runs/256
  two machines of four GPUs under PBS, or under Slurm
    mpiexec -n 8 --ppn 4 {prog} --store patches.zarr --out runs/256
    srun --ntasks 8 --ntasks-per-node 4 {prog} --store patches.zarr --out runs/256
  a look in a minute on a laptop, infrared alone
    {prog} --store patches.zarr --out runs/look --preset demo --channels ir_brightness_temperature --steps 50
  the old recipe by its old flags
    {prog} --preset predecessor --data_path patches.zarr --output_dir runs/old --batch_size_per_gpu 16

A run that was cut short goes on by the same command. A loss that is not finite stops the run, names the
samples and saves nothing: what was saved before is good. Precedence: default < --preset < --config < flag.
Flags take dashes or underscores. The path of the checkpoint goes to stdout, all else to stderr.
"""


def make_parser(prog: str = "gridrad-cube train") -> argparse.ArgumentParser:
    """The parser of the training command."""
    script = "training/dino.py" if prog.startswith("python") else "-m gridrad_cube.training"
    parser = argparse.ArgumentParser(
        prog=prog, usage=f"{prog} --store STORE --out DIR [options]", description=_DESCRIPTION, allow_abbrev=False,
        epilog=_EPILOG.format(prog=prog, script=script), formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    common = parser.add_argument_group("recipe", _GROUPS["recipe"])
    common.add_argument(
        "--preset",
        default="small",
        metavar="NAME",
        help=f"one of {', '.join(presets())}, none (default: small)",
    )
    common.add_argument("--config", metavar="FILE", help="TOML file of options, over the preset's")
    defaults = [load_config(level=level).to_dict() for level in ("256", "2k")]
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in FIELDS.items():
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title, _GROUPS[title])
        groups[title].add_argument(*_names(name), **_settings(name), help=_help(name, defaults))
    return parser


def _names(name: str) -> list[str]:
    other = {"store": ["--data-path"], "out": ["--output-dir"]}
    return [flag(name), *other.get(name, [])]


def _settings(name: str) -> dict[str, Any]:
    annotation, unit = HINTS[name], FIELDS[name].metadata["unit"]
    settings: dict[str, Any] = {
        "dest": name,
        "default": argparse.SUPPRESS,
        "metavar": _metavar(name, annotation),
    }
    if annotation is bool:
        return settings | {"nargs": "?", "const": True}
    if get_origin(annotation) is tuple or name == "reject":
        count = {"zoom": 2, "global_crops_scale": 2, "local_crops_scale": 2, "time": 2, "bbox": 4}
        names = tuple(unit.split(",")[0].split()) if unit.isupper() or "," in unit else None
        number = count.get(name, "+")
        return settings | {"nargs": number} | ({"metavar": names} if names and len(names) == number else {})
    return settings


def _metavar(name: str, annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(get_args(annotation)) + "}"
    words = {"store": "STORE", "out": "DIR", "channels": "NAME", "reject": "FLAG", "init_from": "FILE",
             "resume": "auto|FILE|never", "arch": "NAME"}  # fmt: skip
    if name in words or annotation is bool:
        return words.get(name, "BOOL")
    unit = FIELDS[name].metadata["unit"].split(" ")[0]
    return unit.upper() if unit and unit != "share" else "X" if "float" in str(annotation) else "N"


def _help(name: str, defaults: Sequence[Mapping[str, Any]]) -> str:
    field = FIELDS[name]
    level = field.metadata["level"]
    notes = [f"level {level} only"] if level else []
    shown = [_show(d[name]) for d in defaults]
    if shown[0] or shown[1]:
        both = shown[0] == shown[1] or level is not None
        value = shown[1] if level == "2k" else shown[0]
        notes.append(f"default: {value}" if both else f"default: {shown[0]}, level 2k: {shown[1]}")
    text = field.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")
    return text.replace("%", "%%")


def _show(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(v) for v in value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _spelled(argv: Sequence[str]) -> list[str]:
    """Flags with dashes, whichever way they were typed; values untouched."""
    out = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
        out.append(word)
    return out


def parse_config(argv: Sequence[str], prog: str = "gridrad-cube train") -> Config:
    """The configuration that a command line asks for.

    Raises
    ------
    SchemaError
        If a flag or a value is unknown, or the store cannot be trained from.
    """
    parser = make_parser(prog)
    for name in ("use_fp16", *IDLE):
        parser.add_argument(
            flag(name), dest=name, nargs="?", const=True, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    words = _spelled(argv)
    for word in words:
        if word.startswith("--") and word[2:].split("=")[0].replace("-", "_") in REMOVED:
            raise SchemaError(unknown_option(word.split("=")[0]))
    values, unknown = parser.parse_known_args(words)
    for word in unknown:
        if word.startswith("-"):
            raise SchemaError(unknown_option(word.split("=")[0]))
        raise SchemaError(f"unexpected argument {word!r}; every option is a flag, see --help")
    options = vars(values)
    preset, file = options.pop("preset"), options.pop("config")
    idle = [f"{flag(name)} ({why})" for name, why in IDLE.items() if options.pop(name, None) is not None]
    if idle:
        logging.getLogger(__name__).warning("no effect any more: %s", "; ".join(idle))
    options = canonical(options, "flags")
    config = load_config(preset=preset, file=file, **options)
    if not config.out:
        raise SchemaError("--out: missing. Pass the folder for checkpoints and metrics.")
    level = store_level(config.store)
    for name in options:
        if FIELDS[name].metadata["level"] not in (None, level):
            logging.getLogger(__name__).warning("%s has no effect at level %s", flag(name), level)
    return config


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def main(argv: Sequence[str] | None = None, *, prog: str = "gridrad-cube train") -> int:
    """Run the training command; the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    world = find_world()
    logging.basicConfig(
        level=logging.INFO if world.is_main else logging.ERROR, stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S",
    )  # fmt: skip
    status = 2  # of a command that asks for what there is not; 1 once it runs
    try:
        config = parse_config(argv, prog)
        status = 1
        summary = train(config, progress=sys.stderr.isatty())
    except (SchemaError, OSError, TrainingError) as error:
        print(f"Error: {_one_line(error)}", file=sys.stderr)
        return status
    except KeyboardInterrupt:
        print("Stopped and saved; the same command goes on.", file=sys.stderr)
        return 130
    if world.is_main:
        print(summary["checkpoint"])
    return 0
