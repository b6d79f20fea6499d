"""Find the rank and device of this process, and connect it to the other processes of a run.

Launchers set environment variables under different names: ``torchrun``, ``srun``, ``mpiexec`` of PALS or
Hydra (PMI),
and ``mpiexec`` of Open MPI. `find_world` reads them for training and embedding alike. This module starts no
process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = [
    "World",
    "choose_device",
    "cores",
    "find_world",
    "mean_later",
    "process_group",
]


def __dir__() -> list[str]:
    return __all__


_logger = logging.getLogger(__name__)

#: Seconds after which a process says that it waits for others, and how long it waits for them at any time.
_TOLD_AFTER_SECONDS, _GROUP_TIMEOUT = 10.0, timedelta(minutes=30)

#: (launcher, rank, world size, local rank under any of these names). The first launcher whose rank and size are set
#: decides: torchrun comes first because it may itself run under one of the others.
_LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE", ("LOCAL_RANK",)),
    ("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",)),
    ("PMI", "PMI_RANK", "PMI_SIZE", ("PALS_LOCAL_RANKID", "MPI_LOCALRANKID", "PMI_LOCAL_RANK")),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",)),
)


@dataclass(frozen=True, kw_only=True)
class World:
    """One process of a run: ``rank`` of ``size``, and its number ``local_rank`` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True if this process writes the files."""
        return self.rank == 0


def find_world(environment: Mapping[str, str] | None = None) -> World:
    """Read rank and world size from the environment that a launcher set; a single process otherwise.

    If a launcher does not set the local rank, all processes are assumed to be on one machine, and the local
    rank is the rank.

    Parameters
    ----------
    environment
        Environment variables; None for those of this process.

    Returns
    -------
    Rank, size and local rank. A single process has rank 0 and size 1.

    Raises
    ------
    ValueError
        If the values are not whole numbers, or the rank is not below the size.
    """
    env = os.environ if environment is None else environment
    for launcher, rank_name, size_name, local_names in _LAUNCHERS:
        if rank_name not in env or size_name not in env:
            continue
        try:
            rank, size = int(env[rank_name]), int(env[size_name])
            local_rank = next((int(env[name]) for name in local_names if name in env), rank)
        except ValueError as error:
            raise ValueError(
                f"{launcher}: {error}; expected whole numbers in {rank_name}, {size_name}"
            ) from None
        if not 0 <= rank < size:
            raise ValueError(
                f"{launcher}: {rank_name}={rank} with {size_name}={size}; expected a rank below the size. "
                "Unset both to run one process."
            )
        return World(rank=rank, size=size, local_rank=local_rank)
    return World()


def choose_device(device: str, world: World) -> torch.device:
    """Return the device of this process.

    On CUDA this is GPU number ``local_rank`` modulo the number of visible GPUs. A process that starts its own
    workers gives worker ``i`` its device by ``choose_device(device, World(local_rank=i))``, so that the
    workers share the GPUs evenly.

    Parameters
    ----------
    device
        ``"auto"`` (CUDA where there is a GPU), ``"cpu"``, ``"cuda"``, or a certain GPU as ``"cuda:1"``.
    world
        The processes of this run; None takes `find_world`.

    Returns
    -------
    The device.

    Raises
    ------
    ValueError
        If a GPU is requested that does not exist, or the name is unknown.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not count):
        return torch.device("cpu")
    kind, _, number = device.partition(":")
    if device not in ("auto", "cuda") and not (kind == "cuda" and number.isdecimal()):
        raise ValueError(f"device: got {device!r}; expected auto, cpu, cuda or cuda:N")
    if not count:
        raise ValueError(f"device: {device!r} asked for but torch sees no GPU here. Pass `device='cpu'`.")
    if number and int(number) >= count:
        raise ValueError(
            f"device: {device!r} asked for but torch sees {count} GPUs; expected a number below that"
        )
    return torch.device("cuda", int(number) if number else world.local_rank % count)


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Join the other processes of a run for the duration of a ``with`` block. A single process does nothing.

    Parameters
    ----------
    world
        The processes of this run.
    device
        Device of this process, which chooses NCCL or Gloo.

    Raises
    ------
    ConnectionError
        If the other processes cannot be reached.
    """
    import torch
    import torch.distributed as dist

    if world.size == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ.setdefault("MASTER_ADDR", _master_address())
    os.environ.setdefault("MASTER_PORT", str(_master_port()))
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    _logger.info("rank %d of %d meets the others at %s", world.rank, world.size, where)
    waiting = threading.Timer(
        _TOLD_AFTER_SECONDS, _logger.warning,
        ("rank %d of %d waits for the others at %s. Without others, unset RANK and WORLD_SIZE, or SLURM_PROCID; if "
         "they are elsewhere, set MASTER_ADDR to the host of rank 0.", world.rank, world.size, where),
    )  # fmt: skip
    waiting.daemon = True
    waiting.start()
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=world.rank, world_size=world.size, timeout=_GROUP_TIMEOUT,
        )  # fmt: skip
    except RuntimeError as error:
        raise ConnectionError(
            f"rank {world.rank} of {world.size}: the others did not come to {where} in "
            f"{_GROUP_TIMEOUT.total_seconds() / 60:.0f} min, or do not answer there ({str(error).splitlines()[0]}). "
            "Start as many processes as the launcher says, or unset its variables to run one process."
        ) from error
    finally:
        waiting.cancel()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _master_address() -> str:
    nodes = os.environ.get("PBS_NODEFILE")
    if nodes and Path(nodes).is_file():
        return Path(nodes).read_text().split()[0]
    return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")


def _master_port() -> int:
    # Two jobs on one machine must not meet: the scheduler's job number picks the port.
    job = os.environ.get("PBS_JOBID", os.environ.get("SLURM_JOB_ID", "0"))
    digits = "".join(c for c in job.split(".")[0] if c.isdigit()) or "0"
    return 29500 + int(digits) % 2000


def mean_later(loss: torch.Tensor, flags: tuple[bool, bool], world: World) -> Callable[[], list[float]]:
    """Start averaging a loss and two flags over all processes.

    A flag is above 0 if any process set it. Nothing here waits for a GPU until the returned function is
    called.

    Parameters
    ----------
    loss
        Loss of this process, one number.
    flags
        Two flags of this process.
    world
        The processes of this run.

    Returns
    -------
    Function that waits for the three numbers and returns them.
    """
    import torch
    import torch.distributed as dist

    if world.size == 1:
        wait = _copy_later(loss[None])
        return lambda: [*wait(), *map(float, flags)]
    raised = torch.tensor([float(flag) for flag in flags])
    if loss.device.type == "cuda":
        raised = raised.pin_memory().to(loss.device, non_blocking=True)
    values = torch.cat([loss[None].float(), raised])
    dist.all_reduce(values)
    return _copy_later(values / world.size)


def _copy_later(values: torch.Tensor) -> Callable[[], list[float]]:
    """Start copying a vector to the host; calling the result waits for this copy only."""
    import torch

    if values.device.type != "cuda":
        return values.tolist
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> list[float]:
        copied.synchronize()
        return host.tolist()

    return wait


def cores() -> int:
    """Return the processors that this process may use.

    Returns
    -------
    Number of processors that this process may use.
    """
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1
