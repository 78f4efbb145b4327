"""The command under signals: it says at once what it does, exits as shells expect, and goes on to the same bits."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from ramnet_np.train.checkpoint import latest_checkpoint
from ramnet_np.train.interrupt import DeferredInterrupt
from ramnet_np.train.metrics import read_metrics

COMMAND = (
    *(sys.executable, "-m", "ramnet_np.cli", "train", "mqar", "--backend", "numpy"),
    *("--model.vocab", "32", "--model.width", "8", "--model.order", "2", "--model.radix", "3", "--model.ffn", "none"),
    *("--model.top-k", "4", "--data.vocab", "32", "--data.train", "2", "12", "64", "--data.test", "2", "12", "16"),
    *("--train.batch", "8", "--train.warmup", "2", "--train.evaluate-every", "40"),
)


def start(out, *more):
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_before_the_first_record(tmp_path, number, status):
    """Once a step is made, a signal saves; there is no record to draw yet, and that is no error."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("this process ignores that signal, as under nohup, and so would the one that it starts")
    long = ("--train.steps", "1000000", "--train.log-every", "1000000", "--train.evaluate-every", "1000000")
    process = start(tmp_path, *long)
    wait_for(tmp_path / "metrics.jsonl", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "ending this step, then saving; once more stops at once\n" in err
    step = int(latest_checkpoint(tmp_path / "checkpoints").name.removeprefix("step-"))
    assert f"interrupted after step {step}, " in out
    assert "no curves yet: the first record of the training comes after train.log_every steps" in out
    assert "--resume with the same settings goes on from here" in out
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_at_once(number, status):
    with DeferredInterrupt("wait") as interrupt:
        signal.raise_signal(number)
        assert interrupt.signal == number
        with pytest.raises((KeyboardInterrupt, SystemExit)) as ended:
            signal.raise_signal(number)
    assert ended.type is KeyboardInterrupt if number == signal.SIGINT else ended.value.code == status


def test_a_signal_that_is_ignored_stays_ignored():
    """As nohup wants it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with DeferredInterrupt("never said") as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert not interrupt.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def result_of(out):
    checkpoint = latest_checkpoint(out / "checkpoints")
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(out / "metrics.jsonl")]
    tensors = load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "optimizer.safetensors")
    return checkpoint.name, records, tensors


KILLS = 8


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(tmp_path):
    """The process is killed again and again, in and between steps and saves, and resumed until the run has ended."""
    short = ("--train.steps", "120", "--train.log-every", "1", "--train.checkpoint-every", "4")
    process = start(tmp_path / "whole", *short)
    _, err = process.communicate()
    assert process.returncode == 0, err
    rng, kills, killed = random.Random(0), 0, tmp_path / "killed"
    while True:
        resume = ("--resume",) if latest_checkpoint(killed / "checkpoints") else ()
        process = start(killed, *short, *resume)
        before = (killed / "metrics.jsonl").stat().st_mtime_ns if resume else 0
        while process.poll() is None and kills < KILLS:  # until it trains
            if (killed / "metrics.jsonl").exists() and (killed / "metrics.jsonl").stat().st_mtime_ns > before:
                time.sleep(rng.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        _, err = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err
        kills += 1
    assert kills == KILLS
    (name, records, tensors), (name_, records_, tensors_) = map(result_of, (tmp_path / "whole", killed))
    assert (name, records) == (name_, records_)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, tensors_[key], err_msg=key)
    assert not [path for path in os.listdir(killed / "checkpoints") if path.startswith(".")]
