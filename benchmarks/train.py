"""Training from the store, from tensors that are ready, and as the predecessor trained, in one run.

    python benchmarks/train.py --out benchmarks/results/train.md                            (some minutes on a CPU)
    python benchmarks/train.py --arch vit_demo --batch 8 --steps 2 --repeats 1 --scenes 2          (a quick look)
    python benchmarks/train.py --preset gpu --out benchmarks/results/train-gpu.md     (ViT-S/16, 2 x 224 + 8 x 96 px)

Synthetic satellite scenes are built into a store; its clean infrared patches are written as one float32 ``.pt`` file
each, too. Every way of training then takes some steps, in turns: all of them once, then all again, so that a busy
machine slows all alike. Rates are medians over the turns, ratios are taken within each turn, then their median: by
the clock and, since a machine may be busy with other things, by the processor time of this process and its workers.

- **ready**: the project's own loop, but each step is given the same batch, read once and lying on the device.
- **store**: the project's own loop, `gridrad_cube.training.train`.
- **predecessor**: its way of doing it, written again from its description: loose files through a DataLoader with
  worker processes, views drawn sample by sample on the CPU, fp32, a loss that goes through all prototypes for each of
  its pairs, clipping and the teacher's average tensor by tensor with numbers fetched to the host. The network is
  this project's, so what differs is what is around it.

A second table compares two ways through the network for views of two sizes: each size by itself, as the project does,
and "packed": norms, linear maps and perceptrons over the tokens of all views at once, attention for each size.
Images are samples, each with all of its views.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the Makefile has it; before torch reads it

import machine
import numpy as np
import psutil  # comes with distributed
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gridrad_cube import pipeline, synthetic
from gridrad_cube.datasets import Batch, PatchDataset, PatchLoader
from gridrad_cube.launch import World, choose_device
from gridrad_cube.models import DINOHead, VisionTransformer, build, parameter_groups
from gridrad_cube.schema import Recipe, TileSpec
from gridrad_cube.training import Config, load_config, loop, train
from gridrad_cube.training.monitors import count_flops, peak_flops
from gridrad_cube.training.networks import use_bf16

CHANNEL = "ir_brightness_temperature"
#: Steps of each turn that are not counted.
WARM_UP = 2
GPU = {
    "arch": "vit_small", "global_size": 224, "local_size": 96, "patch": 256, "shape": (2240, 2856), "scenes": 24,
    "batch": 128, "steps": 60, "out_dim": 65536, "workers": 10, "threads": 4,
}  # fmt: skip


def build_store(folder: Path, options: argparse.Namespace) -> Path:
    """A store of synthetic scenes, and its clean patches one file each."""
    synthetic.write_scenes(folder / "sources", scenes=options.scenes, shape=tuple(options.shape))
    store = folder / "patches.zarr"
    recipe = Recipe(channels=(CHANNEL,), tile=TileSpec(patch=options.patch))
    pipeline.preprocess(folder / "sources", store, recipe=recipe)
    data = PatchDataset(store)
    packing = data.normalizations[CHANNEL].packing
    (folder / "pt").mkdir()
    for i in range(len(data)):
        torch.save(torch.from_numpy(packing.decode(data[i].codes[0, 0].numpy())), folder / "pt" / f"{i}.pt")
    return store


# the project's way


@dataclass(frozen=True)
class Spent:
    """Seconds: by the clock, waiting for data, and of processors."""

    wall: float
    waiting: float
    cpu: float


def cpu_seconds() -> float:
    """Processor time so far of this process and of the workers that it has."""
    workers = (psutil.Process(child.pid).cpu_times() for child in multiprocessing.active_children())
    return time.process_time() + sum(worker.user + worker.system for worker in workers)


class Clock:
    """Notes when the steps that count began and ended, and what had been spent until then."""

    def __init__(self, waited: Callable[[], float]) -> None:
        self.waited, self.at = waited, list[Spent]()

    def __call__(self, step: int, steps: int, record: Any) -> None:
        """After a step."""
        # The last step writes a record, for which the others need not wait.
        if step in (WARM_UP, steps - 1):
            self.at.append(Spent(time.perf_counter(), self.waited(), cpu_seconds()))

    def measured(self) -> Spent:
        """What the steps that count took."""
        start, end = self.at
        return Spent(end.wall - start.wall, end.waiting - start.waiting, end.cpu - start.cpu)


class Known(PatchLoader):
    """A `PatchLoader` that can be asked how long it was waited for."""

    latest: PatchLoader | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        Known.latest = self


class Ready(Known):
    """Gives the same batch at each step, from the device."""

    def __iter__(self) -> Iterator[Batch]:
        batch = self._load(next(self.sampler.batches()))
        if self._stream is not None:
            self._stream.synchronize()
        for _ in range(self.sampler.steps_left):
            self.sampler.advance()
            yield batch


def project(config: Config, loader: type[Known]) -> Spent:
    """Train some steps; what the counted ones took."""
    clock = Clock(lambda: Known.latest.seconds_waiting if Known.latest else 0.0)
    with tempfile.TemporaryDirectory(dir=Path(config.store).parent) as out, \
            mock.patch.object(loop, "PatchLoader", loader):  # fmt: skip
        train(Config.from_dict(config.to_dict() | {"out": f"{out}/run"}), progress=clock)
    return clock.measured()


# the predecessor's way


class LooseViews(Dataset[list[Tensor]]):
    """One file a sample, and its views drawn on the CPU, one after the other."""

    def __init__(self, folder: Path, length: int, sizes: tuple[int, int], local_views: int) -> None:
        self.folder, self.length, self.sizes, self.local_views = folder, length, sizes, local_views

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Tensor]:
        field = torch.load(self.folder / f"{index}.pt", weights_only=True)[None, None]
        rng, (large, small) = np.random.default_rng(), self.sizes
        views = [
            draw_view(field, rng, large, (0.4, 1.0), blur=1.0),
            draw_view(field, rng, large, (0.4, 1.0), blur=0.1, solarise=0.2),
        ]
        return views + [draw_view(field, rng, small, (0.05, 0.4), blur=0.5) for _ in range(self.local_views)]


def draw_view(
    field: Tensor,
    rng: np.random.Generator,
    size: int,
    area: tuple[float, float],
    *,
    blur: float,
    solarise: float = 0.0,
) -> Tensor:
    """A random resized part of a field (1, 1, H, W), perhaps mirrored, blurred and solarised, (1, size, size)."""
    height, width = field.shape[2:]
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        h, w = round((pixels / ratio) ** 0.5), round((pixels * ratio) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            break
    else:
        h, w = height, width
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    part = field[:, :, top : top + h, left : left + w]
    view = F.interpolate(part, (size, size), mode="bicubic", antialias=True)
    if rng.random() < 0.5:
        view = view.flip(-1)
    if rng.random() < blur:
        side = np.exp(-0.5 / rng.uniform(0.1, 2.0) ** 2)
        line = torch.tensor([side, 1.0, side]) / (1 + 2 * side)
        view = F.conv2d(
            F.pad(view, (1, 1, 1, 1), mode="reflect"), torch.outer(line, line)[None, None].float()
        )
    if rng.random() < solarise:
        view = torch.where(view > 0.5, 1.0 - view, view)
    return (view[0] - 0.5) / 0.5


class Predecessor:
    """Networks and optimiser; one step at a time."""

    def __init__(self, config: Config, out_dim: int, device: torch.device) -> None:
        sizes: dict[str, Any] = {"image_size": config.global_size}
        self.views, self.device = 2 + config.local_crops_number, device
        backbone = build(config.arch, 1, drop_path_rate=config.drop_path_rate, **sizes)
        self.student = nn.ModuleList([backbone, DINOHead(backbone.embed_dim, out_dim)]).to(device)
        teacher = build(config.arch, 1, **sizes)
        self.teacher = nn.ModuleList([teacher, DINOHead(backbone.embed_dim, out_dim)]).to(device)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student), lr=1e-5)
        self.center = torch.zeros(1, out_dim, device=device)

    def _outputs(self, network: nn.ModuleList, views: Sequence[Tensor]) -> Tensor:
        groups = [torch.cat(list(same)) for _, same in itertools.groupby(views, key=lambda v: v.shape[-1])]
        out: Tensor = network[1](torch.cat([network[0](group) for group in groups]))
        return out

    def step(self, views: Sequence[Tensor]) -> float:
        """One update; the loss."""
        views = [view.to(self.device, non_blocking=True) for view in views]
        with torch.no_grad():
            taught = self._outputs(self.teacher, views[:2])
        learnt = self._outputs(self.student, views)
        loss = self._loss(learnt, taught)
        value = loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                share = 3.0 / (parameter.grad.norm(2).item() + 1e-6)
                if share < 1:
                    parameter.grad.mul_(share)
        self.optimizer.step()
        with torch.no_grad():
            for new, old in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                old.mul_(0.996).add_(0.004 * new)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return value

    def _loss(self, learnt: Tensor, taught: Tensor) -> Tensor:
        students = (learnt / 0.1).chunk(self.views)
        targets = ((taught - self.center) / 0.04).softmax(-1).detach().chunk(2)
        terms = [
            -(target * student.log_softmax(-1)).sum(-1).mean()
            for t, target in enumerate(targets)
            for s, student in enumerate(students)
            if s != t
        ]
        self.center = self.center * 0.9 + taught.mean(0, keepdim=True) * 0.1
        return torch.stack(terms).sum() / len(terms)


def predecessor(config: Config, folder: Path, out_dim: int, workers: int, device: torch.device) -> Spent:
    """As `project`."""
    length = len(list(folder.glob("*.pt")))
    data = LooseViews(folder, length, (config.global_size, config.local_size), config.local_crops_number)
    loader = DataLoader(
        data, config.batch_size_per_gpu, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True,
        pin_memory=device.type == "cuda", multiprocessing_context="spawn",
    )  # fmt: skip
    networks = Predecessor(config, out_dim, device)
    waited, clock = 0.0, Clock(lambda: waited)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    assert config.steps is not None
    for step in range(1, config.steps):
        started = time.perf_counter()
        views = next(batches)
        waited += time.perf_counter() - started
        networks.step(views)
        clock(step, config.steps, None)
    return clock.measured()


# two ways through the network


def packed(network: VisionTransformer, groups: Sequence[Tensor]) -> Tensor:
    """Class tokens of views of several sizes, (views, D): all but attention over all tokens at once."""
    embedded = [network._embed(x, None, None)[0] for x in groups]
    shapes = [tokens.shape[:2] for tokens in embedded]
    lengths = [views * tokens for views, tokens in shapes]
    x = torch.cat([tokens.flatten(0, 1) for tokens in embedded])
    for block in network.blocks:
        heads, parts = block.attn.heads, []
        qkv = block.attn.qkv(block.norm1(x))
        for part, shape in zip(qkv.split(lengths), shapes, strict=True):
            q, k, v = part.unflatten(0, shape).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            parts.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1))
        x = x + block.attn.proj(torch.cat(parts))
        x = x + block.mlp(block.norm2(x))
    first = [part[:: shape[1]] for part, shape in zip(x.split(lengths), shapes, strict=True)]
    return network.norm(torch.cat(first))


def compare_packing(
    config: Config, device: torch.device, repeats: int, batches: Sequence[int]
) -> list[list[object]]:
    """Rows: batch, milliseconds there and back by size and packed, and the median ratio."""
    network = build(config.arch, 1, image_size=config.global_size).to(device)
    bf16, rows = use_bf16(config.precision, device), list[list[object]]()
    now = time.process_time if device.type == "cpu" else time.perf_counter
    for batch in batches:
        groups = [
            torch.randn(count * batch, 1, size, size, device=device)
            for count, size in ((2, config.global_size), (config.local_crops_number, config.local_size))
        ]

        def grouped(groups: list[Tensor] = groups) -> Tensor:
            return torch.cat([network(x) for x in groups])

        def together(groups: list[Tensor] = groups) -> Tensor:
            return packed(network, groups)

        with torch.no_grad():
            torch.testing.assert_close(together(), grouped(), rtol=1e-3, atol=1e-3)
        times: dict[str, list[float]] = {"grouped": [], "packed": []}
        for turn in range(2 * repeats + 1):
            for name, way in (("grouped", grouped), ("packed", together)):
                started = now()
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    out = way()
                out.float().square().mean().backward()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    times[name].append(now() - started)
        ratio = statistics.median(g / p for g, p in zip(times["grouped"], times["packed"], strict=True))
        rows.append([batch, *(f"{1e3 * statistics.median(t):.1f}" for t in times.values()), f"{ratio:.2f}"])
    return rows


# where the time goes


def profiled(config: Config, device: torch.device, most: int = 25) -> list[list[object]]:
    """Rows: milliseconds a step and calls a step of what took longest; ready tensors, the checkpoint at the end too."""
    cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    assert config.steps is not None
    with torch.profiler.profile(activities=[activity]) as profile:
        project(config, Ready)
    spent = [(e.self_device_time_total if cuda else e.self_cpu_time_total, e) for e in profile.key_averages()]
    spent.sort(key=lambda pair: -pair[0])
    return [
        [f"{1e-3 * time / config.steps:.2f}", f"{event.count / config.steps:.1f}", event.key[:100]]
        for time, event in spent[:most]
    ]


# the report


@dataclass
class Way:
    """A way of training, and what was measured of it in each turn."""

    name: str
    run: Callable[[], Spent]
    spent: list[Spent] = field(default_factory=list)

    def measure(self) -> None:
        """Train once."""
        self.spent.append(self.run())


def ways_of(
    options: argparse.Namespace, store: Path, config: Config, device: torch.device
) -> tuple[list[Way], float, bool]:
    """What is compared, FLOP of one sample, and whether the project's way computes in bf16."""
    probe = Config.from_dict(config.to_dict() | {"out": str(store.parent / "unused"), "resume": "never"})
    run = loop._Run(probe, World(), torch.device("cpu"))
    student, out_dim = run.networks.student, run.plan.out_dim
    shutil.rmtree(probe.out)
    sizes = [(config.global_size,) * 2] * 2 + [(config.local_size,) * 2] * config.local_crops_number
    ways = [
        Way("ready", lambda: project(config, Ready)),
        Way("store", lambda: project(config, Known)),
        Way(
            "predecessor", lambda: predecessor(config, store.parent / "pt", out_dim, options.workers, device)
        ),
    ]
    if options.compile:
        faster = Config.from_dict(config.to_dict() | {"compile": True})
        ways.insert(2, Way("store, compiled", lambda: project(faster, Known)))
    flops = count_flops(student, sizes)
    return ways, flops, use_bf16(config.precision, device)


def rows_of(
    ways: Sequence[Way], samples: int, flops: float, device: torch.device, bf16: bool
) -> list[list[object]]:
    """One row a way, which saw this number of samples in each turn."""
    rows: list[list[object]] = []
    for way in ways:
        fast = bf16 and way.name != "predecessor"
        rate, peak = samples / statistics.median(s.wall for s in way.spent), peak_flops(device, bf16=fast)
        cpu = statistics.median(s.cpu for s in way.spent) / samples
        waiting = statistics.median(s.waiting / s.wall for s in way.spent)
        rows.append([
            way.name, "bf16" if fast else "fp32", f"{rate:.1f}", f"{rate * flops / 1e12:.3g}",
            "not known" if peak is None else f"{rate * flops / peak:.1%}", f"{waiting:.1%}", f"{cpu:.3g}",
        ])  # fmt: skip
    return rows


def ratio(of: Way, to: Way) -> str:
    """How many times as fast: median of the ratios within turns and their range, by the clock and by processor time."""
    texts = []
    for name in ("wall", "cpu"):
        ratios = [getattr(b, name) / getattr(a, name) for a, b in zip(of.spent, to.spent, strict=True)]
        texts.append(f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"{texts[0]} as fast by the clock, {texts[1]} by processor time"


def parse() -> argparse.Namespace:
    """The options."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=["cpu", "gpu"], default="cpu", help="what the sizes below are, if not given"
    )
    parser.add_argument("--arch", default="vit_small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn that count")
    parser.add_argument("--global-size", type=int, default=96)
    parser.add_argument("--local-size", type=int, default=48)
    parser.add_argument("--local-views", type=int, default=8)
    parser.add_argument("--out-dim", type=int, default=4096, help="prototypes")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--shape", type=int, nargs=2, default=(512, 768), help="pixels of a scene")
    parser.add_argument("--patch", type=int, default=128, help="edge of a patch, pixels")
    parser.add_argument("--workers", type=int, default=cores, help="processes of the DataLoader")
    parser.add_argument("--threads", type=int, default=1, help="batches that the project reads at a time")
    parser.add_argument("--precision", default="auto", help="of the project's way")
    parser.add_argument("--compile", action="store_true", help="the store's way with compiled networks too")
    parser.add_argument(
        "--profile", action="store_true", help="also what takes the time of a step, kernel by kernel"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument(
        "--folder", type=Path, default=None, help="scratch folder; a temporary one by default"
    )
    parser.add_argument("--out", type=Path, default=None, help="write the tables here too")
    if parser.parse_known_args()[0].preset == "gpu":
        parser.set_defaults(**GPU)
    return parser.parse_args()


def main() -> None:
    """Make the store, train every way in turn, print the tables."""
    options = parse()
    device = choose_device(options.device, World())
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        store = build_store(folder, options)
        config = load_config(
            preset="none", store=str(store), out=str(folder / "run"), arch=options.arch, views="zoom", flips="h",
            batch_size_per_gpu=options.batch, steps=options.steps + WARM_UP + 1, out_dim=options.out_dim,
            global_size=options.global_size, local_size=options.local_size, local_crops_number=options.local_views,
            num_workers=options.threads, precision=options.precision, device=device.type, log_steps=10**6,
            save_minutes=0, saveckp_freq=0, warmup_epochs=0, warmup_teacher_temp_epochs=0, probe_steps=0,
        )  # fmt: skip
        ways, flops, bf16 = ways_of(options, store, config, device)
        for _ in range(options.repeats):
            for way in ways:
                way.measure()
        by_name = {way.name: way for way in ways}
        header = [
            "way",
            "precision",
            "images/s",
            "TFLOP/s",
            "of the peak (MFU)",
            "waiting for data",
            "processor s an image",
        ]
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        lines = [
            f"{options.arch} on {place}: batches of {options.batch}, 2 views of {options.global_size} px and "
            f"{options.local_views} of {options.local_size} px of patches of {options.patch} px, {options.out_dim:,} "
            f"prototypes, {flops / 1e9:.1f} GFLOP an image; {options.repeats} turns of {options.steps} steps.",
            "",
            *machine.table(header, rows_of(ways, options.batch * options.steps, flops, device, bf16)),
            "",
            f"The store against ready tensors: {ratio(by_name['store'], by_name['ready'])} (median and range of the "
            "turns).",
            "",
            f"The store against the predecessor's way: {ratio(by_name['store'], by_name['predecessor'])}.",
            "",
            "## Views of two sizes: each by itself, or packed",
            "",
            f"Forward and backward pass of the network alone, {'bf16' if bf16 else 'fp32'}; on a CPU processor time.",
            "",
            *machine.table(
                ["batch", "each size, ms", "packed, ms", "each / packed"],
                compare_packing(config, device, options.repeats, sorted({options.batch // 4 or 1, options.batch})),
            ),
            "",
            "Above 1, packing pays.",
        ]  # fmt: skip
        if options.profile:
            rows = profiled(Config.from_dict(config.to_dict() | {"compile": options.compile}), device)
            lines += [
                "",
                "## Where the time of a step goes",
                "",
                *machine.table(["ms", "calls", "what"], rows),
            ]
        machine.report("Training", lines, options.out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
