"""Starts one process a rank on this host and waits for them; or, in a process that is a rank, joins the others.

    ramnet-np train text --gpus 4        this process starts 4 others, waits, and says what went wrong
    mpiexec -n 4 ramnet-np train text    each of the 4 is a rank already

Ranks of GPUs are plain processes; ranks of CPUs are started by ``mpiexec``, which their MPI needs. Either way a rank
keeps a connection to the process that started it (:mod:`~ramnet_np.runs.watch`), and says there how it ended.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.runs.watch import Starter, Watch
from ramnet_np.train.ranks import ONE, Place, Ranks, place_in

FAILED = 2


def run_on_ranks(
    wanted: int | None, device: str, timeout: float, command: Sequence[str], call: Callable[[Ranks], None]
) -> None:
    """``call`` with the ranks that this process is one of; or start ``wanted`` processes that each run ``command``.

    ``timeout``: seconds after which a rank that does not answer ends the run. SystemExit with the status of the ranks.

    >>> run_on_ranks(None, "cpu", 300.0, [], lambda ranks: print(ranks.size))
    1
    """
    place = place_in(os.environ)
    if place.size > 1:
        _run_rank(place, device, timeout, call)
    elif wanted is None or wanted == 1:
        call(ONE)
    else:
        raise SystemExit(start(wanted, device, timeout, command))


def start(size: int, device: str, timeout: float, command: Sequence[str]) -> int:
    """Start ``size`` processes, ranks of each other, that each run ``command``; returns the status to exit with.

    ValueError for more GPUs than this host has.
    """
    if device == "gpu" and size > (there := gpu_namespace().cuda.runtime.getDeviceCount()):
        raise ValueError(f"gpus must be at most the {there} of this host, got {size}")
    environment = {"COLUMNS": str(shutil.get_terminal_size().columns)} | os.environ
    environment.setdefault("NUMBA_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    with Watch(size, timeout) as watch:
        environment |= watch.environment
        watch.processes += (_gpu_ranks if device == "gpu" else _cpu_ranks)(size, environment, command)
        return watch.status()


def _run_rank(place: Place, device: str, timeout: float, call: Callable[[Ranks], None]) -> None:
    """``call``; where it fails, say which rank this is and end all of them."""
    starter, ranks, status = Starter(os.environ, place.rank), None, 0
    try:
        ranks = _joined(place, device, timeout, partial(_fail, place, starter, None))
        call(ranks)
    except SystemExit as end:  # a signal has ended the run, on all ranks alike
        status = end.code if isinstance(end.code, int) else FAILED
    except (Exception, KeyboardInterrupt) as error:
        _fail(place, starter, ranks, " ".join(str(error).split()) or type(error).__name__)
    starter.tell("ended", status)
    raise SystemExit(0 if starter.listens else status)


def _joined(place: Place, device: str, timeout: float, on_hang: Callable[[str], None]) -> Ranks:
    """The ranks, once all of them are there."""
    if device == "gpu":
        from ramnet_np.train.nccl_ranks import NCCLRanks

        return NCCLRanks(place, os.environ, timeout, on_hang)
    from ramnet_np.train.mpi_ranks import MPIRanks

    ranks = MPIRanks(place.local_rank, timeout)
    if ranks.size != place.size:
        raise RuntimeError(f"MPI must know all {place.size} ranks, got {ranks.size}: is mpiexec that of mpi4py's MPI?")
    return ranks


def _fail(place: Place, starter: Starter, ranks: Ranks | None, words: str) -> None:
    sys.stdout.flush()
    if starter.listens:
        starter.tell("failed", words)
    else:
        if place.rank > 0:
            time.sleep(1)  # what fails alike on all ranks is said by rank 0
        print(f"ramnet-np: rank {place.rank}: {words}", file=sys.stderr, flush=True)
        if ranks is not None:
            ranks.abort(FAILED)
    os._exit(FAILED)  # the usual end of a program with MPI would wait for the others


def _gpu_ranks(size: int, environment: Mapping[str, str], command: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:  # a port that no one has
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**environment, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [_started(command, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)]


def _cpu_ranks(size: int, environment: Mapping[str, str], command: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mpiexec = shutil.which("mpiexec", path=places)
    if mpiexec is None:
        raise RuntimeError("ranks on CPUs need the mpiexec of an MPI library: pip install 'ramnet-np[ranks]'")
    is_mpich = "HYDRA" in subprocess.run([mpiexec, "--version"], capture_output=True, text=True).stdout
    # MPICH's would end the others before it is known which rank died first; Open MPI's wants a core for each rank
    options = ["-disable-auto-cleanup"] if is_mpich else ["--map-by", ":OVERSUBSCRIBE"]
    return [
        _started(
            [mpiexec, *options, "-n", str(size), *command], environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    ]


def _started(command: Sequence[str], environment: Mapping[str, str], **more: Any) -> subprocess.Popen[bytes]:
    # a session of its own: Ctrl-C reaches the starter alone, which passes it on
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **more)
