"""Ranks that are started on this host: one that fails ends all, in one sentence that names it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ramnet_np.cli import main
from ramnet_np.data.mqar import MQARSettings
from ramnet_np.model import RAMNetConfig
from ramnet_np.runs.mqar import MQARRun
from ramnet_np.runs.watch import Starter, Watch
from ramnet_np.train.checkpoint import latest_checkpoint, load_checkpoint
from ramnet_np.train.config import TrainConfig
from tests.runs.launch_case import rank_processes

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'ramnet-np[ranks]'")
ROOT = Path(__file__).parents[2]
needs_mpi = pytest.mark.skipif(
    not Path(sys.executable).with_name("mpiexec").exists(), reason="there is no mpiexec beside this Python"
)
TINY = (
    *("--backend", "numpy", "--model.vocab", "32", "--model.width", "8", "--model.order", "2", "--model.radix", "3"),
    *("--model.ffn", "none", "--model.top-k", "4", "--data.vocab", "32", "--data.train", "2", "12", "64"),
    *("--data.test", "2", "12", "16", "--train.batch", "8", "--train.warmup", "2", "--train.steps", "1000000"),
)


@needs_mpi
@pytest.mark.parametrize(
    ("how", "size", "status", "says"),
    [
        ("well", 4, 0, ""),
        ("interrupted", 2, 143, ""),
        ("alike", 2, 2, "ramnet-np: no such preset"),
        ("raises", 4, 2, "ramnet-np: rank 3: the disk is full"),
        ("dies", 4, 2, "ramnet-np: rank 3: its process [0-9]+ was killed or has crashed; the last checkpoint is whole"),
        ("hangs", 4, 2, "ramnet-np: rank [012]: rank 3 has not answered for 2 s"),
        ("diverges", 2, 2, "ramnet-np: rank [01]: (the loss became nan, .*|write_logits must be finite, .*) on rank 1"),
    ],
)
def test_how_ranks_end(how, size, status, says):
    command = [sys.executable, "-m", "tests.runs.launch_case", how, str(size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "" if status == 2 else f"{size} ranks have ended\n"), done.stderr
    # mpiexec itself may add where in its own sources it noticed that a rank was killed
    ours = "\n".join(line for line in done.stderr.splitlines() if "(/mpich-" not in line)
    assert re.fullmatch(says, ours.strip()), done.stderr


def said(watch, rank, *messages):
    """A rank of this process that says so and is gone."""
    one = Starter(watch.environment, rank)
    for kind, what in messages:
        one.tell(kind, what)
    one._socket.close()


def ended(**more):
    """A process that has ended already."""
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True, **more)
    process.wait()
    return process


@pytest.fixture
def sent(monkeypatch):
    """The signals that are sent to processes, as ranks are this one here."""
    found = []
    monkeypatch.setattr("ramnet_np.runs.watch.os.kill", lambda process, number: found.append((process, number)))
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ranks_that_ended_before_anyone_listened_are_heard(sent):
    with Watch(3, timeout=60.0) as watch:
        for rank in range(3):
            said(watch, rank, ("ended", 7 if rank == 0 else 0))
        watch.processes.append(ended())
        assert watch.status() == 7


def test_a_signal_that_comes_before_rank_0_reaches_it(sent):
    with Watch(2, timeout=60.0) as watch:
        said(watch, 1)
        watch._hear(1), watch._hear(1)
        signal.raise_signal(signal.SIGINT)
        assert sent == []
        said(watch, 0, ("ended", 130))
        watch._hear(1), watch._hear(1)
        assert sent == [(os.getpid(), signal.SIGINT)]


def test_a_second_signal_ends_all_at_once(sent, capsys):
    with Watch(2, timeout=60.0) as watch:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        watch.processes.append(process)
        ranks = [Starter(watch.environment, rank) for rank in range(2)]
        watch._hear(1), watch._hear(1), watch._hear(1), watch._hear(1)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert watch.status() == 143
    assert process.returncode == -signal.SIGKILL
    rank_0 = [(os.getpid(), signal.SIGTERM), (os.getpid(), signal.SIGINT)]
    assert sent == rank_0 + 2 * [(os.getpid(), signal.SIGKILL)]  # and all that are left
    assert capsys.readouterr().err == "\nramnet-np: interrupted\n"
    for one in ranks:
        one._socket.close()


def test_a_process_may_finish_what_it_does_after_its_ranks_have_ended(sent, tmp_path):
    late = "import pathlib, sys, time; time.sleep(0.5); pathlib.Path(sys.argv[1]).touch()"
    with Watch(1, timeout=60.0) as watch:
        command = [sys.executable, "-c", late, str(tmp_path / "late")]
        watch.processes.append(subprocess.Popen(command, start_new_session=True))
        said(watch, 0, ("ended", 0))
        assert watch.status() == 0
    assert (tmp_path / "late").exists()


def test_a_character_that_comes_in_two_parts_is_one(sent, capfd):
    """The first part is read while the second is not there yet."""
    words = "import sys; out = sys.stdout.buffer; out.write(b'50% \\xe2\\x96'); out.flush(); sys.stdin.readline()\n"
    words += "out.write(b'\\x88 of caf\\xc3')"
    pipe = subprocess.PIPE
    with Watch(1, timeout=60.0) as watch:
        process = subprocess.Popen([sys.executable, "-c", words], stdin=pipe, stdout=pipe, start_new_session=True)
        watch.processes.append(process)
        one = Starter(watch.environment, 0)

        def end():
            one.tell("ended", 0)
            one._socket.close()
            process.stdin.close()

        threading.Timer(0.7, end).start()
        assert watch.status() == 0
    assert capfd.readouterr().out == "50% \u2588 of caf\ufffd"


DIES = """
import os, sys, time
from ramnet_np.runs.watch import Starter
starter = Starter(os.environ, 0)
time.sleep(0.5)
if os.fork():
    os._exit(1)
starter._socket.close()
time.sleep(0.1)
sys.stderr.write("[proxy:0@host] HYDU_sock_write: write error\\nSegmentation fault\\n[mpiexec@host] main: error\\n")
print("BAD TERMINATION", flush=True)
"""


def test_words_of_mpiexec_about_a_rank_that_died_are_left_out(capsys):
    with Watch(1, 30.0) as watch:
        command, environment = [sys.executable, "-c", DIES], os.environ | watch.environment
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        watch.processes.append(subprocess.Popen(command, env=environment, **pipes))
        assert watch.status() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"Segmentation fault\n\nramnet-np: its process [0-9]+ was killed or .*\n", said.err)


@needs_mpi
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the ranks")
@pytest.mark.parametrize("fault", ["Ctrl-C", "killed"])
def test_the_last_checkpoint_is_whole_whatever_ends_the_run(tmp_path, fault):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ramnet_np.cli", "train", "mqar", *TINY, "--train.checkpoint-every", "5"]
    command += ["--ranks", "2", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while latest_checkpoint(out / "checkpoints") is None:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks = rank_processes(out, "PMI_RANK")
        assert sorted(ranks) == [0, 1]
        if fault == "killed":
            os.kill(ranks[1], signal.SIGKILL)
        else:
            process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == (2 if fault == "killed" else 130), errors
    if fault == "killed":
        assert f"ramnet-np: rank 1: its process {ranks[1]} was killed or has crashed" in errors
    else:
        assert errors.count("ending this step, then saving") == 1
        assert said.count("interrupted after step") == 1
    assert not rank_processes(out, "PMI_RANK")
    checkpoint = load_checkpoint(latest_checkpoint(out / "checkpoints"))
    assert all(np.isfinite(p).all() for p in checkpoint.model.params.values())


def test_wrong_numbers_of_ranks_are_one_sentence(capsys):
    assert main(["train", "mqar", *TINY, "--ranks", "3"]) == 2
    assert "train.batch must be a multiple of the 3 ranks times train.accumulate (1), got 8" in capsys.readouterr().err
    assert main(["train", "mqar", *TINY, "--ranks", "0"]) == 2
    assert "ranks must be at least 1, got 0" in capsys.readouterr().err


def test_gpus_mean_the_device():
    model, data = RAMNetConfig(vocab=32, width=8), MQARSettings(vocab=32, train=((2, 12, 32),), test=((2, 12, 8),))
    config = TrainConfig(steps=1, batch=8, warmup=0)
    assert MQARRun(model=model, data=data, train=config, gpus=2).device == "gpu"
    with pytest.raises(ValueError, match=r"ranks must not be set beside gpus \(2\), got 2"):
        MQARRun(model=model, data=data, train=config, gpus=2, ranks=2)
    with pytest.raises(ValueError, match="ranks is for device 'cpu', got device 'gpu'"):
        MQARRun(model=model, data=data, train=config, device="gpu", ranks=2)


def test_more_gpus_than_there_are(monkeypatch):
    from types import SimpleNamespace

    from ramnet_np.runs import launch

    runtime = SimpleNamespace(getDeviceCount=lambda: 1)
    monkeypatch.setattr(launch, "gpu_namespace", lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    with pytest.raises(ValueError, match="gpus must be at most the 1 of this host, got 4"):
        launch.run_on_ranks(4, "gpu", 1.0, [], lambda ranks: None)
