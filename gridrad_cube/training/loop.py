"""The training loop of both levels: one step after another, saved so that any of them may be the last."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import os
import signal
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gridrad_cube.datasets import Batch, EpochSampler, PatchLoader
from gridrad_cube.launch import (
    World,
    choose_device,
    find_world,
    mean_later,
    process_group,
)
from gridrad_cube.models import (
    DINOHead,
    clip_per_tensor_,
    cosine_schedule,
    sample_seeds,
    update_teacher_,
)
from gridrad_cube.progress import explain_interruption, is_watched, progress_bar
from gridrad_cube.schema import SchemaError
from gridrad_cube.store import NORTH_UP, MissingChunkError
from gridrad_cube.training.config import Config, load_config, store_level
from gridrad_cube.training.data import open_source, store_state
from gridrad_cube.training.folder import CHECKPOINT_FORMAT, RunFolder, check_same_run, read_run
from gridrad_cube.training.monitors import Monitor, count_flops, peak_flops
from gridrad_cube.training.networks import Outputs, compile_networks, make_networks, make_optimizer, use_bf16
from gridrad_cube.training.plan import make_plan
from gridrad_cube.training.probe import Probe, Scores, draw_pairs, probe_interval

logger = logging.getLogger(__name__)

#: Called after each step with the step, the number of steps and the latest record of metrics.
Progress = Callable[[int, int, Mapping[str, Any]], None]


#: The length of a run is logged after this many steps, or after the step that ends this many seconds.
_TIMED_STEPS, _TIMED_SECONDS = 5, 30.0
#: A longer run on a CPU logs a warning.
_PATIENCE_SECONDS = 4 * 3600.0
#: If a step takes longer to end after Ctrl-C, a message explains the wait.
_TOLD_AFTER_SECONDS = 1.0


class TrainingError(RuntimeError):
    """Training cannot continue: the loss is not finite, or a step has no samples."""


def train(
    store: str | os.PathLike[str] | Config,
    out: str | os.PathLike[str] | None = None,
    *,
    preset: str = "small",
    progress: Progress | bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train the level that a store is for, or resume such a run.

    If a launcher started several processes, this is one of them. SIGTERM and Ctrl-C end the running step and
    save;
    then SIGTERM returns and Ctrl-C interrupts. A second Ctrl-C interrupts at once.

    Parameters
    ----------
    store
        Cube of patches (level 256) or embedding store (level 2k) to learn from; or a whole `Config`.
    out
        Folder of checkpoints and metrics.
    preset
        Name of a recipe that comes with the package, or ``"none"``.
    progress
        Whether to show a bar on stderr; None shows it in a terminal and in a notebook. Or a function to call after
        each step. Metrics are logged in any case.
    options
        Fields of `Config`, and ``file``, a TOML file of them.

    Returns
    -------
    ``checkpoint`` (path of the latest), ``best`` (path of the best by probe, or None), ``level``, ``step`` of
    ``steps``, ``epoch``, ``train_loss`` and ``images_per_second`` of the last record, ``seconds``, ``stopped``
    (``"SIGTERM"``, or None).

    Raises
    ------
    SchemaError
        If the store cannot be trained from, an option is unknown or does not fit it, or ``out`` holds another run.
    TrainingError
        If the loss is not finite; names the samples.
    """
    if not isinstance(store, Config):
        config = load_config(preset=preset, store=os.fspath(store), out=os.fspath(out or ""), **options)
    elif out is None and not options:
        config = store
    else:
        raise TypeError("train: a Config holds every option; expected no other options beside it")
    if not config.out:
        raise SchemaError("`out`: missing. Pass the folder of the run.")
    world = find_world()
    device = choose_device(config.device, world)
    cuda = [device] if device.type == "cuda" else []
    saved = f"{config.out}: what it held before is kept. Run again to start."
    with (
        explain_interruption(lambda: saved),
        process_group(world, device),
        torch.random.fork_rng(devices=cuda),
        _Signals() as signals,
        _leased(RunFolder(config.out), world) as folder,
    ):
        run = _Run(config, world, device, folder)
        run.announce()
        with explain_interruption(run.kept), _reporter(progress, run) as report:
            try:
                summary = run.fit(signals, report)
            except MissingChunkError as error:
                if run.source.level == "256":
                    raise type(error)(f"{error} Or leave such patches out: `on_damage='skip'`.") from error
                raise
            if "SIGINT" in signals.received:
                raise KeyboardInterrupt
    return summary


@contextmanager
def _leased(folder: RunFolder, world: World) -> Iterator[RunFolder]:
    """Hold the right to write to the folder of a run, by the process that writes; another run is refused."""
    with contextlib.ExitStack() as stack:
        refused: list[Exception | None] = [None]
        if world.is_main:
            try:
                stack.enter_context(folder.lease())
            except (SchemaError, OSError) as error:
                refused = [error]
        if world.size > 1:
            dist.broadcast_object_list(refused, src=0)
        if refused[0] is not None:
            raise refused[0]
        yield folder


class _Signals:
    """Notes SIGTERM, and a first SIGINT during a step; at other times SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self._stepping = False
        self._old: dict[int, Any] = {}
        self._reminder = threading.Timer(
            _TOLD_AFTER_SECONDS, logger.warning,
            ("interrupted; waiting for the end of the step. Press Ctrl-C again to stop without saving it.",),
        )  # fmt: skip

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._reminder.cancel()
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and (not self._stepping or name in self.received):
            raise KeyboardInterrupt
        self.received.append(name)
        if name == "SIGINT":
            self._reminder.daemon = True
            self._reminder.start()

    @contextmanager
    def steps(self, are_under_way: bool = True) -> Iterator[None]:
        """Mark a block with steps, which end before an interruption takes effect."""
        before, self._stepping = self._stepping, are_under_way
        try:
            yield
        finally:
            self._stepping = before


@contextmanager
def _reporter(progress: Progress | bool | None, run: _Run) -> Iterator[Progress | None]:
    """Yield the function to call after each step; it updates a progress bar if one is shown."""
    if callable(progress):
        yield progress
        return
    shown = is_watched() if progress is None else progress
    if not shown or not run.world.is_main or run.step >= run.plan.steps:
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the widgets of notebooks, which are not used
        from tqdm.contrib.logging import logging_redirect_tqdm

    label = f"train {run.source.level}"
    with (
        logging_redirect_tqdm(),
        progress_bar(label, total=run.plan.steps, initial=run.step, unit="step", progress=True) as bar,
    ):

        def move(step: int, steps: int, record: Mapping[str, Any]) -> None:
            bar.update(step - bar.n)
            if record.get("step") == step:
                speed = f"{record['images_per_second']:.0f} samples/s"
                bar.set_postfix_str(f"loss {record['train_loss']:.3f}, {speed}", refresh=False)

        yield move


class _Run:
    """Everything that one run holds while it trains."""

    def __init__(
        self, config: Config, world: World, device: torch.device, folder: RunFolder | None = None
    ) -> None:
        self.config, self.world, self.device = config, world, device
        self.folder = folder or RunFolder(config.out)
        path = self.folder.find(config.resume)
        if world.size > 1:
            dist.barrier()
        self.store = store_state(config.store)
        checkpoint = None if path is None else self._read(path)
        self.source = open_source(config, checkpoint)
        self.bf16 = use_bf16(config.precision, device)
        self._introduce()
        self.plan = plan = make_plan(
            config, level=self.source.level, samples=self.source.samples, world_size=world.size
        )
        torch.manual_seed(config.seed)
        self.networks = make_networks(
            config, plan, self.source.network, self.source.views, edge=self.source.edge
        )
        if config.init_from is not None and checkpoint is None:
            self.networks.load_weights(config.init_from)
        if checkpoint is None and config.init_from is None and config.stem == "scattering":
            self.networks.fit(self.source.first_views())
        self.networks.to(device)
        if config.compile:
            compile_networks(self.networks, device)
        self.optimizer = make_optimizer(config, self.networks.student)
        #: One value per step.
        self.schedules = {
            "lr": cosine_schedule(plan.lr, config.min_lr, plan.steps, plan.warmup_steps),
            "decay": cosine_schedule(config.weight_decay, config.weight_decay_end, plan.steps),
            "momentum": cosine_schedule(plan.momentum_teacher, 1.0, plan.steps),
        }
        self.sampler = EpochSampler(
            self.source.strata, seed=config.seed,
            batch_size=config.batch_size_per_gpu * config.accumulate // self.source.pairs,
            rank=world.rank, world_size=world.size,
        )  # fmt: skip
        self.loader = PatchLoader(
            self.source.loaded, self.sampler, threads=max(1, config.num_workers),
            device=device if device.type == "cuda" else None,
        )  # fmt: skip
        self.monitor = Monitor(self.networks.features, device=device)
        self.probe, self.scores = self._make_probe(), Scores()
        self.step = 0
        self.stopped: str | None = None
        #: Losses since the last record of metrics; saved, so that a resumed run writes the same records.
        self.window: list[float] = []
        self.record: dict[str, Any] = {}
        self._peak, self._flops = peak_flops(device, bf16=self.bf16), 0.0
        if checkpoint is not None:
            self._restore(checkpoint)
            logger.info("resuming %s from step %d of %d", path, self.step, plan.steps)
            if checkpoint["store"]["identity"] != self.store["identity"]:
                logger.info(
                    "%s has changed since; the run trains on the samples that it began with", config.store
                )
        if world.is_main:
            self.folder.begin(config.to_dict(), self.step if checkpoint is not None else None)
            if path is not None and self.scores.best_step == self.step:
                self.folder.mark_best(path)  # an earlier process ended before it could
        self._saved_step = self.step if self.folder.latest.exists() else -1
        self.model: nn.Module = self.networks.student
        if world.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(self.model, device_ids=ids, gradient_as_bucket_view=True)

    def _read(self, path: Path) -> dict[str, Any]:
        """Return the checkpoint from which to resume, if it is of the same run."""
        c, checkpoint = self.config, read_run(path)
        batch = c.batch_size_per_gpu * c.accumulate * self.world.size
        ours = {"level": store_level(c.store), "config": c.to_dict(), "store": self.store}
        # Options newer than the checkpoint count as their defaults there.
        old = Config.from_dict(checkpoint["config"], path).to_dict()
        check_same_run(checkpoint | {"config": old}, ours | {"plan": {"global_batch": batch}}, path)
        return checkpoint

    def _make_probe(self) -> Probe | None:
        """Return the probe of the run; None if it is to have none, or the store is too small for it."""
        c, steps, dataset = self.config, self.plan.steps, self.source.dataset
        every = c.probe_steps
        if every == "auto":
            every = probe_interval(steps, c.batch_size_per_gpu * c.accumulate)
        if not every:
            return None
        pairs = draw_pairs(dataset, c.seed)
        if pairs is None:
            logger.info("no probes and no best checkpoint: too few samples are seen minutes or hours later")
            return None
        where: Any = {"device": self.device, "bf16": self.bf16}
        if c.stem == "scattering":
            where["span"] = 1.0  # fields are scaled to the typical range
        return Probe(dataset, self.source.whole, pairs, every=every, steps=steps, **where)

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        self.networks.load(checkpoint)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.sampler.load_state_dict(checkpoint["sampler"])
        self.step, self.window = checkpoint["step"], list(checkpoint["loss_window"])
        self.scores = Scores(**checkpoint.get("scores", {}))
        if "monitor" in checkpoint:
            self.monitor.load_state_dict(checkpoint["monitor"])

    def _introduce(self) -> None:
        """Return the first line of the log: network, objective, device and data."""
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else f"{torch.get_num_threads()} threads"
        logger.info(
            "level %s, preset %s, objective %s, %s (%s, %s, processes: %d, first on %s), %d samples of %s",
            self.source.level, self.config.preset, self.config.objectives, self.device, name,
            "bf16" if self.bf16 else "fp32", self.world.size, socket.gethostname(), self.source.samples,
            ", ".join(self.source.dataset.labels),
        )  # fmt: skip

    def announce(self) -> None:
        """Log what is about to happen."""
        student, source, plan = self.networks.student, self.source, self.plan
        if source.pairing:
            logger.info(source.pairing)
        logger.info(
            "%s (%.1f M parameters, heads %.1f M): %d steps of %d samples (%d an epoch), %d views a sample, learning "
            "rate up to %.3g", source.network["name"], _millions(student.backbone),
            _millions(student) - _millions(student.backbone), plan.steps, plan.global_batch, plan.steps_per_epoch,
            source.views, plan.lr,
        )  # fmt: skip

    def kept(self) -> str:
        """Return the text on what an interruption keeps, and how to resume."""
        if self._saved_step < 0:
            return f"{self.config.out}: no step is saved. Run again to start."
        return (
            f"{self.config.out}: step {self._saved_step} of {self.plan.steps} is saved. Run again to resume."
        )

    def fit(self, signals: _Signals, progress: Progress | None) -> dict[str, Any]:
        """Train to the end, or until a signal; see `train`."""
        started = time.monotonic()
        self._signals = signals
        if self.step == 0 and self.scores.start is None and (found := self._measure()):
            self.folder.log({"step": 0, "epoch": 0} | found)
        self._clock = time.monotonic(), self.step, self.loader.seconds_waiting
        self._timed: tuple[float, int] | None = (time.monotonic(), self.step)
        self._starting = True
        self._pending, self._has_bar = deque[_Outcome](), progress is not None
        self._saved_at, self._due = started, False
        with signals.steps():
            while self.step < self.plan.steps and self.stopped is None:
                self._train_epoch(progress)
            if self._saved_step != self.step:
                self._save()
        if self.world.size > 1:
            dist.barrier()
        return {
            "checkpoint": str(self.folder.latest), "level": self.source.level, "step": self.step,
            "steps": self.plan.steps, "epoch": self.sampler.epoch, "samples": self.source.samples,
            "train_loss": self.record.get("train_loss"), "images_per_second": self.record.get("images_per_second"),
            "best": str(self.folder.best) if self.folder.best.exists() else None,
            "seconds": time.monotonic() - started, "stopped": self.stopped,
        }  # fmt: skip

    def _train_epoch(self, progress: Progress | None) -> None:
        """Train to the end of an epoch, of the run, or until a signal."""
        epoch = self.sampler.epoch  # handing out the last batch moves the sampler to the next epoch
        with contextlib.closing(iter(self.loader)) as batches:  # type: ignore[type-var]
            for index, batch in zip(self.sampler.batches(), batches, strict=False):
                samples = self.source.expand(self._undamaged(index, batch))
                self._pending.append(self._train_step(samples, batch, epoch))
                self._after_step(epoch)
                if progress is not None:
                    progress(self.step, self.plan.steps, self.record)
                if self.stopped is not None or self.step >= self.plan.steps:
                    return

    def _undamaged(self, index: np.ndarray, batch: Batch) -> np.ndarray:
        """Return which samples the batch has: all that were asked for except those that are damaged in the
        store.
        """
        if batch.damaged is None:
            return index
        kept = index[~np.isin(index, batch.damaged.cpu().numpy())]
        logger.warning(
            "left out %d of %d samples that are damaged in the store, the first in %s; %d so far",
            len(index) - len(kept), len(index), self.source.dataset.describe(int(batch.damaged[0])),
            len(self.loader.damaged),
        )  # fmt: skip
        if len(kept) < self.config.accumulate:
            raise TrainingError(
                f"step {self.step + 1}: {len(kept)} of {len(index)} samples can be read; expected at least "
                f"{self.config.accumulate}. Repair the store (gridrad-cube verify --repair)."
            )
        return kept

    def _train_step(self, index: np.ndarray, batch: Batch, epoch: int) -> _Outcome:
        """Update student and teacher once, from all batches of the step."""
        networks, step = self.networks, self.step
        # Randomness in the networks depends on the step alone, so that checkpoints keep no state of it.
        torch.manual_seed(int(sample_seeds(self.config.seed, step, torch.tensor([self.world.rank]))))
        for group, decay in zip(
            self.optimizer.param_groups, (self.schedules["decay"][step], 0.0), strict=True
        ):
            group["lr"], group["weight_decay"] = float(self.schedules["lr"][step]), float(decay)
        self.optimizer.zero_grad(set_to_none=True)
        loss, seen = torch.zeros((), device=self.device), list[Tensor]()
        parts = batch.split(self.config.accumulate, runs=len(batch) // len(index))
        for rows, part in zip(np.array_split(index, len(parts)), parts, strict=True):
            last = len(seen) == len(parts) - 1
            share = len(rows) / len(index)
            part_loss, taught, own = self._add_gradients(part, rows, epoch, share=share, last=last)
            loss += part_loss
            seen.append(own)
            self.monitor.add(taught.features, self.source.global_views)
        if step < self.plan.freeze_steps and isinstance(networks.student.head, DINOHead):
            networks.student.head.last_layer.zero_grad(set_to_none=True)
        norm = self._clip()
        self.optimizer.step()
        update_teacher_(networks.student, networks.teacher, float(self.schedules["momentum"][step]))
        self._latest = (taught.heads, taught.features, norm)
        self.step += 1
        late = time.monotonic() - self._saved_at > 60 * self.config.save_minutes > 0
        flags = (bool(self._signals.received), late and self.world.is_main)
        return _Outcome(self.step, index, seen, mean_later(loss, flags, self.world))

    def _add_gradients(
        self, batch: Batch, index: np.ndarray, epoch: int, *, share: float, last: bool
    ) -> tuple[Tensor, Outputs, Tensor]:
        """Add a batch's share to the gradients of a step; its loss, what the teacher gave, features of the student."""
        networks = self.networks
        views = networks.prepare(self.source.draw(batch, index, epoch))
        with contextlib.ExitStack() as stack:
            if not last and isinstance(self.model, DistributedDataParallel):
                stack.enter_context(self.model.no_sync())  # the last one averages over processes for all
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                taught = None
                if networks.loss.distillation is not None:
                    with torch.no_grad():
                        taught = networks.teacher(views[: self.source.global_views])
                learnt = self.model(views)
            loss = share * networks.loss(learnt, taught, batch.window, self.step, last=last)
            loss.backward()
        self._shapes = [view.edges for view in views]
        own = learnt.features.detach()
        return loss.detach(), taught or Outputs(own), own

    def _clip(self) -> Tensor:
        parameters = list(self.networks.student.parameters())
        if not self.config.clip_grad:
            return torch.zeros(())
        clip = clip_per_tensor_ if self.config.dino_v1 else nn.utils.clip_grad_norm_
        return clip(parameters, self.config.clip_grad)

    def _after_step(self, epoch: int) -> None:
        """Check the losses, a step late so that a GPU never waits; write metrics and checkpoints."""
        c, step, last = self.config, self.step, self.step == self.plan.steps
        epochs, within = divmod(step, self.plan.steps_per_epoch)
        keeping = not within and c.saveckp_freq > 0 and epochs % c.saveckp_freq == 0
        probing = self.probe is not None and self.probe.due(step)
        recording = step % c.log_steps == 0 or last or probing
        saving = keeping or probing
        self._settle(leave=0 if recording or saving else 1)
        self._forecast()
        if recording:
            self._write_record(epoch, probing=probing)
        # Every process has read the same flags by now, so all of them do the same.
        if saving or self._due or self.stopped is not None:
            self._settle(leave=0)
            self._save(epochs if keeping else None)

    def _forecast(self) -> None:
        """Log once, after the first steps, how long the run will take; warn if that is too long for a CPU."""
        if self._timed is None or not self.world.is_main:
            return
        since, first = self._timed
        done, seconds = self.step - first, time.monotonic() - since
        if done < _TIMED_STEPS and seconds < _TIMED_SECONDS:
            if self._starting:  # the first step pays for what is done once
                self._timed, self._starting = (time.monotonic(), self.step), False
            return
        self._timed, left = None, self.plan.steps - self.step
        if not left:
            return
        expected = left * seconds / done
        pace = _duration(seconds / done)
        message = f"step {self.step}: {pace} a step; the other {left} take about {_duration(expected)}"
        if self.device.type == "cpu" and expected > _PATIENCE_SECONDS:
            smaller = (
                "`preset='demo'` or `coarsen` (average pixels)"
                if self.source.level == "256"
                else "`preset='demo'`"
            )
            logger.warning(
                "%s, too long for a CPU. Pass %s for less arithmetic, `steps` for a shorter run, or train on a GPU.",
                message, smaller,
            )  # fmt: skip
        else:
            logger.info(message)

    def _settle(self, leave: int) -> None:
        """Check all steps but the last ``leave``: whether the loss is finite, and a process asks to stop or save."""
        while len(self._pending) > leave:
            outcome = self._pending.popleft()
            loss, stop, due = outcome.wait()
            if not math.isfinite(loss):
                raise TrainingError(self._explain(outcome, loss))
            self.window.append(loss)
            self._due |= due > 0
            if stop > 0:
                self.stopped = (*self._signals.received, "SIGTERM")[0]

    def _explain(self, outcome: _Outcome, loss: float) -> str:
        by_view = [f.isfinite().all(-1).unflatten(0, (self.source.views, -1)) for f in outcome.features]
        finite = torch.cat([seen.all(0) for seen in by_view]).cpu().numpy()
        wrong = outcome.index[~finite]
        which = "the samples with features that are not finite" if len(wrong) else "the samples of the step"
        places = [self.source.loaded.describe(int(i)) for i in (wrong if len(wrong) else outcome.index)[:8]]
        text = "; ".join(", ".join(f"{k} {v}" for k, v in place.items() if k != "store") for place in places)
        kept = self.folder.latest if self.folder.latest.exists() else "none"
        return (
            f"step {outcome.step}: the loss is {loss}; expected a finite number. {which} (process "
            f"{self.world.rank}, {max(len(wrong), len(places))}): {text}. Last checkpoint: {kept}. Lower `lr` or "
            "`clip_grad`, pass `precision='fp32'`, or leave these patches out by `reject`."
        )

    def _write_record(self, epoch: int, *, probing: bool) -> None:
        """Write one line of metrics, with the monitors of collapse for the last step's teacher."""
        targets, features, norm = self._latest
        now, step, views = time.monotonic(), self.step, self.source.global_views
        record: dict[str, Any] = {
            "step": step, "epoch": epoch, "train_loss": float(np.mean(self.window)),
            "train_lr": float(self.schedules["lr"][step - 1]), "train_wd": float(self.schedules["decay"][step - 1]),
            "momentum_teacher": float(self.schedules["momentum"][step - 1]), "grad_norm": float(norm),
        }  # fmt: skip
        record |= self.monitor.describe(features, views)
        loss = self.networks.dino_loss
        if loss is not None and targets is not None:
            temperature = float(loss.teacher_temps[step - 1])
            assert targets is not None
            record |= {"teacher_temp": temperature}
            record |= self.monitor.describe_targets(targets, loss.center, temperature, record["train_loss"])
        then, first, waited = self._clock  # of the record before
        seconds = max(now - then, 1e-9)
        speed = self.plan.global_batch * (step - first) / seconds
        waiting = self.loader.seconds_waiting - waited
        record |= {"images_per_second": speed, "seconds_waiting": waiting, "share_waiting": waiting / seconds,
                   "mfu": self._utilisation(speed)}  # fmt: skip
        if probing and "SIGINT" not in self._signals.received:
            try:
                # A probe takes a while. Other processes wait for its end.
                with self._signals.steps(self.world.size > 1):
                    record |= self._measure()
            except KeyboardInterrupt:
                self._signals.received.append("SIGINT")
                self.stopped = "SIGINT"
        self.window, self.record = [], record
        self._clock = time.monotonic(), step, self.loader.seconds_waiting
        if self.world.is_main:
            self.folder.log(record)
            if step > self.plan.warmup_steps:
                self.monitor.warn(record, step)
            logger.log(
                logging.DEBUG if self._has_bar else logging.INFO,
                "step %d of %d, epoch %d: loss %.4f, spread %.2f, %.0f samples/s, %.1f s waiting for data",
                step, self.plan.steps, epoch, record["train_loss"], record["feature_std"],
                record["images_per_second"], record["seconds_waiting"],
            )  # fmt: skip

    def _utilisation(self, speed: float) -> float | None:
        """Return the share of the peak of all devices at this many samples a second; None where the peak is
        not known.
        """
        if self._peak is None:
            return None
        views = self.source.global_views
        self._flops = self._flops or count_flops(self.networks.student, self._shapes, teacher_views=views)
        return speed * self._flops / (self._peak * self.world.size)

    def _measure(self) -> dict[str, Any]:
        """Return the probe the teacher, in the main process: the others meet it at the next step."""
        if self.probe is None or not self.world.is_main:
            return {}
        self.scores, found = self.probe.run(self.networks.teacher.embed, self.step, self.scores)
        return found

    def _save(self, epochs: int | None = None) -> None:
        if self.world.is_main:
            self.folder.save(self.state(), epochs=epochs, best=self.scores.best_step == self.step)
        self._saved_step, self._saved_at, self._due = self.step, time.monotonic(), False

    def state(self) -> dict[str, Any]:
        """Return the checkpoint: all that resuming and embedding need, in plain types and tensors."""
        return {
            "format": CHECKPOINT_FORMAT,
            "level": self.source.level,
            **self.networks.state(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "epoch": self.sampler.epoch,
            "sampler": self.sampler.state_dict(),
            "random": {"seed": self.config.seed, "rule": "torch.manual_seed by (seed, step, rank)"},
            "loss_window": list(self.window),
            "scores": dataclasses.asdict(self.scores),
            "monitor": self.monitor.state_dict(),
            "config": self.config.to_dict(),
            "plan": dataclasses.asdict(self.plan),
            **self.source.state(),
            "orientation": NORTH_UP,
            "samples": self.source.samples_state,
            "store": self.store,
            "software": {"gridrad_cube": _package_version(), "torch": str(torch.__version__)},
        }


@dataclass(frozen=True)
class _Outcome:
    """A step whose loss is not checked yet: its samples, the features of the student by batch, its loss."""

    step: int
    index: np.ndarray
    features: list[Tensor]
    wait: Callable[[], list[float]]


def _package_version() -> str:
    """Return the version of this package, whether it is installed or run from a clone."""
    try:
        return importlib.metadata.version("gridrad-cube")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _duration(seconds: float) -> str:
    """Return a length of time in the largest unit of which it is about one or more."""
    scale = ((86400, "days"), (3600, "h"), (60, "min"))
    length, unit = next(((one, name) for one, name in scale if seconds >= 1.5 * one), (1, "s"))
    number = seconds / length
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"


def _millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6
