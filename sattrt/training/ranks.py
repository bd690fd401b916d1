"""One process is one rank, taken from torchrun's environment.

with ranks() as rank:
    total = rank.sum(1.0)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..cores import cores
from ..errors import BackendError, InputError
from ..machine import gpu
from .cpu import keep_freed_memory

# torch's, gloo's and NCCL's words for a process that went away; their other errors are faults of another kind, and keep their traceback
_LOST = (
    "Connection closed by peer",
    "onnection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "ncclRemoteError",
    "ncclSystemError",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
)


@dataclass(frozen=True)
class Rank:
    """This process among those of the run: its number, how many there are, its device, its share of the cores; whether its launcher
    started the processes anew after one was lost."""

    number: int
    world: int
    device: torch.device
    threads: int
    restarted: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.number == 0

    @property
    def device_name(self) -> str:
        """What people call the device: the GPU's name, or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in float64."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        found: list[float] = total.tolist()  # at once: each value by itself would wait for the GPU
        return found

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def ranks(threads: int = 0, before: int = 0) -> Iterator[Rank]:
    """The rank that torchrun's environment describes, or the only one; joins and leaves the process group.

    threads: CPU threads of a rank; 0 is its share of the cores, or on a CPU as many as `before`, of the run that goes on, where the
    share has so many: sums over another number of threads differ in their last bits.
    Raises InputError where the environment makes no sense, BackendError where there is a GPU that torch can't use.
    """
    world, number, local, local_world, restarts = _from_launcher()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus and (unusable := gpu()):  # on the CPU it would train for hours, without a word
        raise BackendError(
            f"torch {torch.__version__} can't use the {unusable[0]}. Install a torch build for its driver, or hide the GPU "
            "(CUDA_VISIBLE_DEVICES=) to run on the CPU."
        )
    if 0 < gpus < local_world:
        raise InputError(f"{local_world} processes were started for {gpus} GPUs. Use torchrun --nproc-per-node {gpus}.")
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    share = max(1, cores() // local_world)
    threads = threads or (before if not gpus and 0 < before <= share else share)
    torch.set_num_threads(threads)
    if gpus:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    try:
        if world > 1:
            backend, own = ("nccl", device) if gpus else ("gloo", None)
            dist.init_process_group(backend, store=_store(restarts), rank=number, world_size=world, device_id=own)
        rank = Rank(number, world, device, threads)
        # torchrun counts restarts where the process was lost, not on the other machines
        yield replace(rank, restarted=rank.sum(restarts)[0] > 0)
    except BaseException as error:
        if dist.is_initialized() and gpus:  # NCCL leaves in order only together: the others may be waiting for this rank
            dist.distributed_c10d._abort_process_group()
        if world > 1 and lost_another(error):
            raise BackendError(
                f"Rank {number} lost another of the {world} processes ({' '.join(str(error).split())[:120]}). The launcher names it above or "
                "below. Start the run again with the same launcher; sattrt train continues with --resume."
            ) from None
        if out_of_memory(error):
            said = " ".join(str(error).rpartition("] ")[2].split())[:120]
            raise BackendError(f"There is not enough memory on {device}: {said}. Lower batch_size, image_size or cache_gb.") from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process of the run went away."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no more memory to give; torch has no type of its own for a CPU's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _from_launcher() -> tuple[int, int, int, int, int]:
    """How many processes there are, and which this is; its number, and how many there are, on this machine; how often they were started
    anew. InputError where that makes no sense."""
    keys = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    given = {key: os.environ.get(key) for key in keys}
    way_out = "Start several processes with torchrun, or a single one without these variables."
    for key in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):  # Open MPI's, and MPICH's and Intel's
        if given["WORLD_SIZE"] is None and (count := os.environ.get(key, "1")) != "1":
            raise InputError(
                f"mpirun started {count} processes ({key}), which would be as many runs over the same files. Use: "
                f"torchrun --nproc-per-node {count} -m sattrt ..."
            )
    if (given["WORLD_SIZE"] is None) != (given["RANK"] is None):
        there, lacking = ("RANK", "WORLD_SIZE") if given["RANK"] is not None else ("WORLD_SIZE", "RANK")
        raise InputError(f"The environment has {there}={given[there]}, but no {lacking}. {way_out}")
    try:
        world, number = int(given["WORLD_SIZE"] or 1), int(given["RANK"] or 0)
        local, local_world = int(given["LOCAL_RANK"] or 0), int(given["LOCAL_WORLD_SIZE"] or world)
        restarts = int(given["TORCHELASTIC_RESTART_COUNT"] or 0)
    except ValueError as error:
        raise InputError(f"A process number in the environment is invalid ({error}). {way_out}") from None
    if not (0 <= number < world and 0 <= local < local_world <= world):
        said = ", ".join(f"{key}={value}" for key, value in given.items() if value is not None)
        raise InputError(f"The process numbers in the environment don't fit together ({said}). {way_out}")
    if world > 1 and (missing := [key for key in ("MASTER_ADDR", "MASTER_PORT") if not given[key]]):
        raise InputError(f"The environment has WORLD_SIZE={world}, but no {missing[0]}. {way_out}")
    return world, number, local, local_world, restarts


def _store(restarts: int) -> Store:
    """Where the processes find each other.

    torchrun hands a restarted run the store of the one before, with the addresses of dead processes in it (pytorch issue 135712):
    each restart has a prefix of its own. On several machines torchrun's count may differ, docs/training.md says what to set there.
    """
    try:
        store: Store = next(rendezvous("env://"))[0]
    except (dist.DistError, ValueError) as error:  # a port that is taken, or is none; nobody there
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise BackendError(
            f"The processes of the run can't meet at {place} ({' '.join(str(error).split())[:160]}). Set MASTER_ADDR and MASTER_PORT to a free "
            "port of the first machine, or start them with torchrun."
        ) from None
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = PrefixStore(f"restart-{restarts}", store)
    return store
