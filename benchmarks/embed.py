"""Embedding a cube against the bare forward pass of the same network on the same device.

    python benchmarks/embed.py --out benchmarks/results/embed.md
    python benchmarks/embed.py --arch vit_tiny --scenes 1 --repeats 1                        (a quick look)

Makes a cube of LaRC-size scenes (two channels, patches of 256 px) and a checkpoint with random weights. "Bare" is the
network alone: batches of ready tensors, already on the device, as many patches as the cube has. "Embedding" is
`gridrad_cube.embedding.embed`: reading, decoding, normalizing, the network, float16, writing, finishing. They run in
turn in one process. What counts is the share of the bare patches per second that embedding reaches, by wall time and,
since a machine may be busy with other things, by processor time.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np
import torch

from gridrad_cube import pipeline, synthetic
from gridrad_cube.datasets import normalizations
from gridrad_cube.embedding import Network, embed
from gridrad_cube.launch import World, choose_device
from gridrad_cube.models import build, save_checkpoint
from gridrad_cube.store import store_info

CHANNELS = ("ir_brightness_temperature", "visible_reflectance")


def make_checkpoint(path: Path, cube: Path, arch: str) -> None:
    """A network with random weights, as training saves one."""
    network = build(arch, 1, mask_token=True)
    save_checkpoint(
        {
            "format": 1, "level": "256", "model": network.config(), "channels": list(CHANNELS), "channel_mode": "each",
            "teacher": {f"backbone.{k}": v for k, v in network.state_dict().items()}, "coarsen": 1, "view": {},
            "normalization": {k: v.to_dict() for k, v in normalizations(cube, CHANNELS).items()},
            "config": {"reject": None}, "store": {"path": cube.name, "identity": store_info(cube)["identity"]},
        },
        path,
    )  # fmt: skip


def timed(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    start = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    """Make the cube, run both sides in turn, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="vit_small")
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=2, default=(2240, 2856), help="pixels of a scene")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=None, help="scratch folder; a temporary one by default"
    )
    parser.add_argument("--out", type=Path, default=None, help="write the table here too")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        synthetic.write_scenes(folder / "sources", scenes=options.scenes, shape=tuple(options.shape))
        cube, checkpoint = folder / "patches.zarr", folder / "checkpoint.pth"
        pipeline.preprocess(folder / "sources", cube)
        make_checkpoint(checkpoint, cube, options.arch)
        network = Network(checkpoint, device=choose_device(options.device, World()))
        asked = {"device": options.device, "batch_size": options.batch_size}
        count = embed(cube, checkpoint, folder / "warm.zarr", **asked)["embedded"]
        edge = int(store_info(cube)["patch"])
        ready = torch.randn(options.batch_size, 1, edge, edge, device=network.device)

        def bare() -> None:
            half = torch.autocast(network.device.type, torch.bfloat16, enabled=network.device.type == "cuda")
            with torch.inference_mode(), half:
                for start in range(0, count, options.batch_size):
                    network.backbone.forward_tokens(ready[: min(options.batch_size, count - start)])

        bare()
        rows, shares = [], []
        for number in range(options.repeats):
            alone = timed(bare, network.device)
            out = folder / f"{number}.zarr"
            whole = timed(lambda out=out: embed(cube, checkpoint, out, **asked), network.device)
            shares.append([a / w for a, w in zip(alone, whole, strict=True)])
            cells = [f"{alone[0]:.2f}", f"{whole[0]:.2f}", f"{count / whole[0]:.1f}"]
            rows.append([number + 1, *cells, *(f"{s:.1%}" for s in shares[-1])])
        wall, cpu = np.median(shares, axis=0)
        header = [
            "run",
            "bare, s",
            "embedding, s",
            "patches/s",
            "share of bare, wall",
            "share, processor time",
        ]
        size = sum(p.stat().st_size for p in (folder / "0.zarr").rglob("*") if p.is_file())
        text = [
            f"{options.arch} on {network.device}, {count} patches of {edge} px, batches of {options.batch_size}; "
            f"opening, loading the checkpoint and finishing included. The store has {size / 1e6:.2f} MB.",
            "",
            *machine.table(header, rows),
            "",
            f"Median share of the bare forward pass: {wall:.1%} by wall time, {cpu:.1%} by processor time.",
        ]
        machine.report("Embedding against the bare forward pass", text, options.out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
