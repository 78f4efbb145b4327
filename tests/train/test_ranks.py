"""Training with 2 and 4 processes on the CPU: the result of one process, the same bits each time, and on any number."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ramnet_np.data.batches import Batch, Share, ShuffledSets
from ramnet_np.data.text import TextData
from ramnet_np.train.checkpoint import latest_checkpoint, load_checkpoint
from ramnet_np.train.metrics import read_metrics
from ramnet_np.train.ranks import ONE, place_in, require_rows
from tests.train.rank_cases import CASES, DOCUMENTS, REPEATED, SETTINGS, run_case

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'ramnet-np[ranks]'")
MPIEXEC = Path(sys.executable).with_name("mpiexec")
ROOT = Path(__file__).parents[2]
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="there is no mpiexec beside this Python")


def under_mpi(size: int, *args: object) -> None:
    command = [MPIEXEC, "-n", str(size), sys.executable, "-m", "tests.train.rank_cases", *map(str, args)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NUMBA_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]


def results(out: Path) -> tuple[dict[str, np.ndarray], list[dict]]:
    last = latest_checkpoint(out / "checkpoints")
    arrays = {f"{file.name} {name}": a for file in last.glob("*.safetensors") for name, a in load_file(file).items()}
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(out / "metrics.jsonl")]
    return arrays, records


def require_close(one: Path, other: Path) -> None:
    (arrays, records), (others, other_records) = results(one), results(other)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(others[name], array, rtol=1e-4, atol=1e-6, err_msg=f"{name}, {other}")
    assert len(records) == len(other_records)
    for record, of_other in zip(records, other_records, strict=True):
        assert record.keys() == of_other.keys()
        for name, value in record.items():
            assert of_other[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)


def require_same(one: Path, other: Path) -> None:
    (arrays, records), (again, records_again) = results(one), results(other)
    assert records == records_again
    assert arrays.keys() == again.keys()
    for name, array in arrays.items():
        assert array.tobytes() == again[name].tobytes(), name


@needs_mpi
def test_several_ranks_agree_with_one_process_and_repeat(tmp_path):
    """One test, so that the runs are made once however the tests are spread over processes."""
    for case in CASES:
        run_case(case, tmp_path / "one" / case, ONE)
    under_mpi(2, tmp_path / "two")
    under_mpi(2, tmp_path / "again", "stop")

    # the chain: by two ranks, of which one gets SIGTERM, then by one process, then by four ranks
    chain = tmp_path / "chain"
    assert latest_checkpoint(chain / "checkpoints").name == "step-00000002"
    assert run_case("documents", chain, ONE, resume=True, stop=True).status == "interrupted"
    assert latest_checkpoint(chain / "checkpoints").name == "step-00000004"
    under_mpi(4, tmp_path / "four", "resume")

    for case in CASES:
        for size in ("two", "four"):
            require_close(tmp_path / "one" / case, tmp_path / size / case)
    for case in REPEATED:
        require_same(tmp_path / "two" / case, tmp_path / "again" / case)
    require_close(tmp_path / "one" / "documents", chain)
    assert load_checkpoint(latest_checkpoint(chain / "checkpoints")).carried


def test_ranks_see_every_example_of_an_epoch_once():
    sets = [np.arange(first, first + n)[:, None].repeat(2, axis=1) for first, n in ((0, 24), (100, 16))]
    shares = [
        ShuffledSets([Batch(ids, ids) for ids in sets], {}, batch=8, seed=1, share=Share(rank, 4)) for rank in range(4)
    ]
    seen = [int(i) for source in shares for step in range(5) for i in source.batch(step).ids[:, 0]]
    assert sorted(seen) == [*range(24), *range(100, 116)]


@pytest.mark.parametrize("case", list(SETTINGS))
def test_the_shares_of_a_batch_of_text_are_the_batch(case):
    whole, *parts = (TextData(DOCUMENTS, SETTINGS[case], 8, 3, share) for share in (Share(), Share(0, 2), Share(1, 2)))
    for step in range(3):
        for array, *of_parts in zip(whole.batch(step), *(part.batch(step) for part in parts), strict=True):
            assert (np.concatenate(of_parts) == array).all()


def test_the_place_of_a_process():
    srun = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    assert place_in(srun) == (3, 8, 1)
    assert place_in({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == (0, 1, 0)  # a batch script, outside srun
    assert place_in({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}) == (1, 2, 1)
    with pytest.raises(ValueError, match=r"RANK must be from 0 to WORLD_SIZE - 1 \(1\), got 2"):
        place_in({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


def test_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match=r"a multiple of the 3 ranks times train.accumulate \(2\), got 8"):
        require_rows(3, 8, 2)
