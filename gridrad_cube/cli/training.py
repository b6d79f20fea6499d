"""The command train: each of its options is a field of `gridrad_cube.training.Config`."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from gridrad_cube.cli.arguments import complete_channel, complete_store
from gridrad_cube.cli.messages import Command, echo, spell
from gridrad_cube.launch import find_world

if TYPE_CHECKING:
    from gridrad_cube.training import Config

logger = logging.getLogger(__name__)

#: What --help shows; --help-all shows every option.
_FIRST = ("store", "out", "preset", "config", "channels", "epochs", "steps", "batch_size_per_gpu", "device", "resume",
          "seed")  # fmt: skip

#: The groups of options in --help-all.
_GROUPS = {
    "recipe": "Where the numbers come from that are not given; the defaults below are those of --preset small.",
    "data": "What to learn from, and how it is read.",
    "network": "What learns. A checkpoint keeps all of this, so that embedding needs none of it.",
    "objective": "What is learned: that views of one patch, or windows of one place at near times, belong together. "
    "With dino and coding-rate a teacher, the average of past students, gives the answer that a student has to find "
    "from another view.",
    "optimizer": "How fast and how long. Warm-ups may last a fraction of an epoch.",
    "views": "The network learns to ignore what two views of a patch differ in.",
    "run": "Where it runs, and what it writes.",
    "other": "",
}

_EPILOG = """\
\b
examples:
  learn from a cube, with the preset small
    gridrad-cube train --store patches.zarr --out runs/256
  the second level, from the embeddings of the first
    gridrad-cube embed --store patches.zarr --checkpoint runs/256/checkpoint.pth --out embeddings.zarr
    gridrad-cube train --store embeddings.zarr --out runs/2k
  four GPUs of one machine
    torchrun --nproc-per-node 4 -m gridrad_cube train --store patches.zarr --out runs/256 --preset gpu
  two machines of four GPUs under PBS, or under Slurm
    mpiexec -n 8 --ppn 4 gridrad-cube train --store patches.zarr --out runs/256 --preset gpu
    srun --ntasks 8 --ntasks-per-node 4 gridrad-cube train --store patches.zarr --out runs/256 --preset gpu
  a short run on a laptop, with infrared alone
    gridrad-cube train --store patches.zarr --out runs/look --preset demo --channels ir_brightness_temperature
  two months without the days to test on
    gridrad-cube train --store patches.zarr --out runs/256 --time 2019-12-01 2020-02-01 --exclude-time 2019-12-31
  the recipe of the predecessor by its own options
    gridrad-cube train --preset predecessor --data_path patches.zarr --output_dir runs/old --batch_size_per_gpu 16

The same command resumes a run that was interrupted. A loss that is not finite stops the run and names the
samples; the checkpoint before it stays. A preset overrides the defaults, --config the preset, and an option
all of them. An option that only DINO uses takes the preset dino unless --objective is given. Options take
dashes or underscores. The path of the checkpoint goes to stdout, everything else to stderr; python
training/dino.py is the same program.
"""


class _Option(click.Option):
    """An option of one raw value: `Config` checks it, as it checks those of files and Python."""

    def __init__(
        self, name: str, *flags: str, group: str, several: bool = False, switch: bool = False, **more: Any
    ) -> None:
        spelled = [f"--{f.replace('_', '-')}" for f in (name, *flags)]
        complete = {"store": complete_store, "channels": complete_channel}.get(name)
        super().__init__([name, *spelled], type=click.UNPROCESSED, shell_complete=complete, **more)
        self.group, self.several, self.switch = group, several, switch


class _Train(Command):
    """A command whose options come from `Config` when it is used, since importing that takes seconds."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*_options(), *super().get_params(ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _one_value_each(args, self.get_params(ctx)))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        params = self.get_params(ctx)
        if not ctx.meta.get("help-all"):
            shown = [p for name in _FIRST for p in params if p.name == name]
            shown += [p for p in params if not isinstance(p, _Option)]
            with formatter.section("Options"):
                formatter.write_dl([r for p in shown if (r := p.get_help_record(ctx))])
            return
        for title, text in _GROUPS.items():
            rows = [p.get_help_record(ctx) for p in params if getattr(p, "group", "other") == title]
            with formatter.section(title):
                if text:
                    formatter.write_text(text)
                formatter.write_dl([row for row in rows if row])


@functools.cache
def _options() -> tuple[_Option, ...]:
    from gridrad_cube.training import FIELDS, IDLE, list_presets, load_config

    defaults = [load_config(level=level).to_dict() for level in ("256", "2k")]
    names = ", ".join(list_presets())
    options = [
        _Option("preset", group="recipe", metavar="NAME", help=f"One of {names} or none (default: small)."),
        _Option("config", group="recipe", metavar="FILE", help="TOML file of options, over the preset."),
    ]
    aliases = {"store": ["data_path"], "out": ["output_dir"]}
    options += [
        _Option(name, *aliases.get(name, []), **_describe(name, defaults))
        for name in FIELDS
        if name != "preset"
    ]
    options += [_Option(name, group="other", hidden=True, switch=True) for name in ("use_fp16", *IDLE)]
    return tuple(options)


def _describe(name: str, defaults: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the group, help and metavar of an option."""
    from gridrad_cube.training import FIELDS, HINTS, TimeRanges

    about, kind = FIELDS[name].metadata, HINTS[name]
    several = get_origin(kind) is tuple or name == "reject"
    notes = [f"level {about['level']} only"] if about["level"] else []
    first, second = (_show(d[name]) for d in defaults)
    if first or second:
        same = first == second or about["level"]
        notes.append(f"default: {first}" if same else f"default: {first}, level 2k: {second}")
    words = {"store": "STORE", "out": "DIR", "channels": "NAME...", "reject": "FLAG...", "init_from": "FILE",
             "resume": "auto|FILE|never", "arch": "NAME", "device": "NAME",
             "temporal_positives": "MINUTES..."}  # fmt: skip
    metavar = words.get(name) or about["unit"].upper() or ("X" if "float" in str(kind) else "N")
    if get_origin(kind) is Literal:
        metavar = "|".join(get_args(kind))
    elif kind is bool:
        metavar = "[BOOL]"
    text = about["help"] + (f" ({'; '.join(notes)})" if notes else "")
    marks = {"several": several, "switch": kind is bool, "multiple": kind == TimeRanges}
    return {"group": about["group"], "metavar": metavar, "help": text, **marks}


def _show(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(v) for v in value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _one_value_each(args: Sequence[str], params: Sequence[click.Parameter]) -> list[str]:
    """Return the words of a command line with dashes in options, and the values of each option joined by
    commas.
    """
    from gridrad_cube.training import unknown_option

    known = {flag: param for param in params for flag in param.opts}
    words: list[list[str]] = []
    for arg in args:
        if arg.startswith("--") or arg == "-h":
            name, equals, value = arg.partition("=")
            words.append([name.replace("_", "-"), *([value] if equals else [])])
            if words[-1][0] not in known:
                text = unknown_option(name)
                raise click.UsageError(re.sub(r"`(\w+)`", lambda m: "--" + m[1].replace("_", "-"), text))
        elif words and (len(words[-1]) == 1 or getattr(known[words[-1][0]], "several", False)):
            words[-1].append(arg)
        else:
            raise click.UsageError(f"unexpected argument {arg!r}; every value belongs to an option")
    out = []
    for flag, *values in words:
        if not values and getattr(known[flag], "switch", False):
            values = ["true"]
        out += [f"{flag}={','.join(values)}" if values else flag]
    return out


def _configure(params: Mapping[str, Any]) -> Config:
    """Return the configuration that the options of a command line ask for."""
    from gridrad_cube.training import FIELDS, IDLE, load_config, store_level

    given = {name: value for name, value in params.items() if value not in (None, ())}
    for name in ("time", "exclude_time"):  # given several times, each with its own values
        if name in given:
            given[name] = [value.split(",") for value in given[name]]
    idle = [f"--{name.replace('_', '-')} ({why})" for name, why in IDLE.items() if given.pop(name, None)]
    if idle:
        logger.warning("no effect: %s", "; ".join(idle))
    config = load_config(file=given.pop("config", None), **given)
    level = store_level(config.store)
    for name in given:
        if name in FIELDS and FIELDS[name].metadata["level"] not in (None, level):
            logger.warning("--%s has no effect at level %s", name.replace("_", "-"), level)
    return config


def _help_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["help-all"] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


@click.command(cls=_Train, epilog=_EPILOG)
@click.option(
    "--help-all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_help_all,
    help="Show every option.",
)
@click.pass_context
def train(ctx: click.Context, **options: Any) -> None:
    """Train a vision transformer without labels, straight from a store.

    The store decides the level: a cube of patches trains level 256, an embedding store trains level 2k.
    Only --store and --out are needed. The first options to change are --preset, --channels and --steps. metrics.jsonl
    shows whether the network learns (docs/training.md).
    """
    from gridrad_cube.training import TrainingError
    from gridrad_cube.training import train as run

    world = find_world()
    logging.getLogger("gridrad_cube").setLevel(logging.NOTSET if world.is_main else logging.ERROR)
    try:
        summary = run(_configure(options))
    except TrainingError as error:
        if ctx.find_root().params.get("debug"):
            raise
        raise click.ClickException(spell(str(error), ctx)) from error
    if world.is_main:
        echo(summary["checkpoint"])
