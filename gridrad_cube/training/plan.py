"""The numbers of a run that follow from the size of the data set: what ``auto`` stands for."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from gridrad_cube.models import cosine_schedule
from gridrad_cube.schema import SchemaError
from gridrad_cube.training.config import Config, Level

logger = logging.getLogger(__name__)

#: Prototypes by number of samples (lightly-train's table); at level 2k never more than `MOST_PROTOTYPES_2K`,
#: or the head would outweigh the network.
PROTOTYPES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))
MOST_PROTOTYPES_2K = 4096
#: Fewer grids a step than this teach level 2k nothing: their features have no distribution to speak of.
SMALLEST_STEP_2K = 16
#: Samples after which half of DINO's own teacher was renewed: 0.996 a step of 1024.
HALF_LIFE = 177_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does, in optimiser steps. ``lr`` is the peak itself, scaled with the batch."""

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
    """Work out a run's length, schedules and prototypes.

    Parameters
    ----------
    samples
        Of an epoch.

    Raises
    ------
    SchemaError
        If there are too few samples for a step, or a warm-up is longer than the run.
    """
    batch = config.batch_size_per_gpu * world_size * config.accumulate
    _check_batch(config, level, samples, batch, world_size)
    per_epoch = samples // batch
    steps = config.epochs * per_epoch if config.steps is None else config.steps
    teacher_temp = _temperature(samples) if config.teacher_temp == "auto" else config.teacher_temp
    warmup_temp = config.warmup_teacher_temp
    return Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        global_batch=batch,
        lr=config.lr * batch / 256,
        warmup_steps=_length(config, "warmup_epochs", steps, per_epoch, 12_500, 0.1),
        momentum_teacher=_momentum(samples, batch)
        if config.momentum_teacher == "auto"
        else config.momentum_teacher,
        freeze_steps=_length(config, "freeze_last_layer", steps, per_epoch, 1_250, 0.05),
        out_dim=_prototypes(samples, level) if config.out_dim == "auto" else config.out_dim,
        warmup_teacher_temp=min(0.04, teacher_temp) if warmup_temp == "auto" else warmup_temp,
        teacher_temp=teacher_temp,
        temp_warmup_steps=_length(config, "warmup_teacher_temp_epochs", steps, per_epoch, 37_500, 0.3),
    )


def _check_batch(config: Config, level: Level, samples: int, batch: int, world_size: int) -> None:
    what = "grids (crops x channels)" if level == "2k" else "clean patches (of all channels)"
    counted = f"{config.batch_size_per_gpu} x {world_size} processes"
    counted += f" x {config.accumulate} accumulated" if config.accumulate > 1 else ""
    if level == "2k" and batch < SMALLEST_STEP_2K:
        raise SchemaError(
            f"--batch-size-per-gpu: {counted} make {batch} grids a step; level 2k needs at least "
            f"{SMALLEST_STEP_2K}. Raise it, or start more processes."
        )
    # The coding rate spreads the samples of one batch, not of the step.
    if level == "2k" and config.objective == "coding-rate" and batch // config.accumulate < SMALLEST_STEP_2K:
        raise SchemaError(
            f"--accumulate: {counted} make {batch // config.accumulate} grids for one coding rate; level 2k needs "
            f"at least {SMALLEST_STEP_2K}. Lower it and raise --batch-size-per-gpu, or pass --objective dino."
        )
    if samples < batch:
        least = SMALLEST_STEP_2K if level == "2k" else 1
        share = samples // (world_size * config.accumulate)
        smaller = f"Pass --batch-size-per-gpu {max(share, 1)} or less, or add" if (
            samples >= max(least, world_size * config.accumulate)) else "Add"  # fmt: skip
        more = (
            "scenes or channels to the cube, or cut smaller crops (preprocess --crop)"
            if level == "2k"
            else "scenes"
        )
        raise SchemaError(
            f"{config.store}: {samples} {what}, fewer than one step of {batch} ({counted}). {smaller} {more}."
        )


def _length(config: Config, name: str, steps: int, per_epoch: int, most: int, share: float) -> int:
    """A length in steps: given in epochs, or at most this many steps and this share of the run."""
    epochs = getattr(config, name)
    if epochs == "auto":
        return min(most, round(share * steps))
    length = round(epochs * per_epoch)
    if length > steps > 0 and config.steps is not None and name != "freeze_last_layer":
        logger.warning(
            "--steps %d ends within --%s %g (%d steps)", steps, name.replace("_", "-"), epochs, length
        )
    elif length > steps and config.steps is None and name != "freeze_last_layer":
        raise SchemaError(
            f"--{name.replace('_', '-')}: {epochs:g} epochs do not fit into --epochs {config.epochs}. "
            "Lower it, or train longer."
        )
    return min(length, steps)


def _prototypes(samples: int, level: Level) -> int:
    number = next((k for most, k in PROTOTYPES if samples <= most), 65536)
    return min(number, MOST_PROTOTYPES_2K) if level == "2k" else number


def _temperature(samples: int) -> float:
    """0.02 up to 20,000 samples, rising with their logarithm to 0.07 at 1.28 million, as ImageNet has."""
    share = math.log(samples / 20_000) / math.log(1_280_000 / 20_000)
    return round(0.02 + 0.05 * min(max(share, 0.0), 1.0), 4)


def _momentum(samples: int, batch: int) -> float:
    """Half of the teacher renewed within an epoch, or within DINO's own half-life; never below 0.99."""
    return max(0.99, 2.0 ** (-batch / min(samples, HALF_LIFE)))


def make_schedules(config: Config, plan: Plan) -> dict[str, np.ndarray]:
    """One value a step of learning rate, weight decay and the teacher's momentum."""
    return {
        "lr": cosine_schedule(plan.lr, config.min_lr, plan.steps, plan.warmup_steps),
        "decay": cosine_schedule(config.weight_decay, config.weight_decay_end, plan.steps),
        "momentum": cosine_schedule(plan.momentum_teacher, 1.0, plan.steps),
    }
