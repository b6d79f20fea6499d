#!/usr/bin/env python
"""Train a network without labels, straight from a store; the store decides the level.

Level 256, from a cube of patches, and level 2k, from the embeddings of that network::

    python training/dino.py --store patches.zarr --out runs/256
    gridrad-cube embed --store patches.zarr --checkpoint runs/256/checkpoint.pth --out embeddings.zarr
    python training/dino.py --store embeddings.zarr --out runs/2k

On all GPUs of a machine, or on many machines, the same with torchrun, srun or mpiexec in front::

    torchrun --nproc-per-node 4 training/dino.py --store patches.zarr --out runs/256

This is the command ``gridrad-cube train``; ``--help-all`` lists every option, and ``presets/`` beside this file holds
the recipes (``--preset small``). The code is in `gridrad_cube.training`: `config.py` has the options, `loop.py` the
loop, step by step.
"""

import sys
from pathlib import Path

try:
    from gridrad_cube.cli import cli
except ModuleNotFoundError as error:  # run from a clone that is not installed
    if error.name != "gridrad_cube":
        raise
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from gridrad_cube.cli import cli

if __name__ == "__main__":
    cli.main(["train", *sys.argv[1:]], prog_name="gridrad-cube")
