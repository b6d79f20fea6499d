"""The length, rates and prototypes of a run, worked out from its options and the number of samples."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from gridrad_cube.schema import SchemaError
from gridrad_cube.training.config import Config, Level, flag_of

logger = logging.getLogger(__name__)

#: Prototypes by number of samples (the table of lightly-train); at level 2k never more than `_MOST_PROTOTYPES_2K`,
#: or the head would outweigh the network.
_PROTOTYPES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))
_MOST_PROTOTYPES_2K = 4096
#: Level 2k learns nothing from fewer grids per step: their features have no distribution to speak of.
_SMALLEST_STEP_2K = 16
#: Samples after which half of the teacher of DINO is renewed: 0.996 per step of 1024.
_HALF_LIFE = 177_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does, in optimizer steps. ``lr`` is the peak itself, scaled with the batch."""

    steps: int
    steps_per_epoch: int
    global_batch: int
    lr: float
    warmup_steps: int
    momentum_teacher: float
    freeze_steps: int
    out_dim: int
    warmup_teacher_temp: float
    teacher_temp: float
    temp_warmup_steps: int


def make_plan(config: Config, *, level: Level, samples: int, world_size: int = 1) -> Plan:
    """Work out the length of a run, its schedules and prototypes from the number of samples of an epoch."""
    if level == "2k" and config.pairs_windows:
        raise SchemaError(
            f"`objective`: got {config.objectives!r}; expected dino or coding-rate at level 2k, which has no windows "
            "of pixels to contrast"
        )
    batch = config.batch_size_per_gpu * world_size * config.accumulate
    _check_batch(config, level, samples, batch, world_size)
    per_epoch = samples // batch
    steps = config.epochs * per_epoch if config.steps is None else config.steps
    temp, first_temp = config.teacher_temp, config.warmup_teacher_temp
    temp = _temperature(samples) if temp == "auto" else temp
    renewing = max(
        0.99, 2.0 ** (-batch / min(samples, _HALF_LIFE))
    )  # half of the teacher in an epoch, or `_HALF_LIFE`
    return Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        global_batch=batch,
        lr=config.lr * batch / 256,
        warmup_steps=_length(config, "warmup_epochs", steps, per_epoch, 12_500, 0.1),
        momentum_teacher=renewing if config.momentum_teacher == "auto" else config.momentum_teacher,
        freeze_steps=_length(config, "freeze_last_layer", steps, per_epoch, 1_250, 0.05),
        out_dim=_prototypes(samples, level) if config.out_dim == "auto" else config.out_dim,
        warmup_teacher_temp=min(0.04, temp) if first_temp == "auto" else first_temp,
        teacher_temp=temp,
        temp_warmup_steps=_length(config, "warmup_teacher_temp_epochs", steps, per_epoch, 37_500, 0.3),
    )


def _check_batch(config: Config, level: Level, samples: int, batch: int, world_size: int) -> None:
    counted = f"{config.batch_size_per_gpu} x {world_size} processes"
    counted += f" x {config.accumulate} accumulated" if config.accumulate > 1 else ""
    # The coding rate spreads the samples of one batch, not of the step.
    together = batch if config.objective == "dino" else batch // config.accumulate
    if level == "2k" and together < _SMALLEST_STEP_2K:
        raise SchemaError(
            f"`batch_size_per_gpu`: one loss has {together} grids ({counted}); level 2k needs at least "
            f"{_SMALLEST_STEP_2K}. Raise it, or start more processes."
        )
    if samples < batch:
        what = "grids (crops x channels)" if level == "2k" else "clean patches (of all channels)"
        most = samples // world_size
        if most * world_size < (_SMALLEST_STEP_2K if level == "2k" else 1):
            remedy = f"Level 2k needs at least {_SMALLEST_STEP_2K}: add" if level == "2k" else "Add"
        else:
            remedy = (
                f"Lower `batch_size_per_gpu`: it times `accumulate`, the batches that make one step, may be at most "
                f"{most}. Or add"
            )
        raise SchemaError(
            f"{config.store}: {samples} {what}, fewer than one step of {batch} ({counted}). {remedy} scenes or "
            "channels."
        )


def _length(config: Config, name: str, steps: int, per_epoch: int, most: int, share: float) -> int:
    """Return a length in steps: given in epochs, or at most this many steps and this share of the run."""
    epochs = getattr(config, name)
    if epochs == "auto":
        return min(most, round(share * steps))
    length = round(epochs * per_epoch)
    if length > steps and name != "freeze_last_layer":
        if config.steps is None:
            raise SchemaError(
                f"{flag_of(name)}: {epochs:g} epochs do not fit into `epochs={config.epochs}`. Lower it, or train "
                "longer."
            )
        if steps:
            logger.warning("`steps=%d` ends within %s %g (%d steps)", steps, flag_of(name), epochs, length)
    return min(length, steps)


def _prototypes(samples: int, level: Level) -> int:
    number = next((k for most, k in _PROTOTYPES if samples <= most), 65536)
    return min(number, _MOST_PROTOTYPES_2K) if level == "2k" else number


def _temperature(samples: int) -> float:
    """Return 0.02 up to 20,000 samples, rising with their logarithm to 0.07 at 1.28 million, as ImageNet has."""
    share = math.log(samples / 20_000) / math.log(1_280_000 / 20_000)
    return round(0.02 + 0.05 * min(max(share, 0.0), 1.0), 4)
