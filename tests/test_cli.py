"""The command, as a user runs it."""

import json
import subprocess
import sys

import pytest

from ramnet_np import __version__
from ramnet_np.cli import COMMANDS, main


def run(capsys, *args):
    """Exit status, stdout and stderr of ``ramnet-np args``."""
    try:
        status = main(args)
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    return status, out, err


def test_help_names_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(f"  {command}" in out for command in COMMANDS)
    assert run(capsys) == (0, out, "")


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"{__version__}\n", "")


def test_the_installed_command_runs():
    command = [sys.executable, "-m", "ramnet_np.cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == __version__


def test_info_shows_version_backends_device_and_threads(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    assert f"ramnet_np   {__version__}" in out
    assert "numba: available, the default for NumPy arrays" in out
    assert "cores" in out
    assert "threads" in out


def test_info_preset_reproduces_the_papers_counts(capsys):
    status, out, _ = run(capsys, "info", "--preset", "paper-340m")
    assert status == 0
    assert "Parameters 340.8M, total state 28.8M, active state per token 0.4M." in out


def test_gradcheck_passes_and_prints_tables(capsys):
    status, out, _ = run(capsys, "gradcheck", "--match", "rmsnorm", "--verbose")
    assert status == 0
    assert "rmsnorm: PASS" in out
    assert out.rstrip().splitlines()[-1].startswith("1 passed, 0 failed")


def test_gradcheck_fails_with_exit_status_1(capsys, monkeypatch):
    from ramnet_np.gradcheck import cases, gradcheck

    def wrong(samples, seed):
        import numpy as np

        return gradcheck(lambda x: (x**2, x), lambda dy, x: 3 * x * dy, {"x": np.ones(3)}, title="wrong")

    monkeypatch.setitem(cases.CASES, "wrong", wrong)
    status, out, _ = run(capsys, "gradcheck", "--match", "wrong")
    assert status == 1
    assert "0 passed, 1 failed" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fly"], "command must be one of demo, train, experiment, generate, info, gradcheck, bench, got 'fly'"),
        (["train"], "train must be told what to train on, 'mqar' or 'text', got 'nothing'"),
        (["train", "poems"], "train must be told what to train on, 'mqar' or 'text', got 'poems'"),
        (["train", "text", "--data.path", "nowhere.txt"], "data.path must be a file, got 'nowhere.txt'"),
        (["generate", "nowhere"], "folder must hold a run or a checkpoint, got 'nowhere', which is no folder"),
        (["train", "mqar", "--preset", "huge"], "preset must be one of"),
        (["info", "--preset", "huge"], "got 'huge'"),
        (["gradcheck", "--match", "nothing-like-this"], "match must be part of a case's name"),
        (["gradcheck", "--backend", "abacus"], "backend must be one of 'numpy', 'numba'"),
    ],
)
def test_bad_input_is_one_line_on_stderr(capsys, args, words):
    status, out, err = run(capsys, *args)
    assert status == 2
    assert out == ""
    assert words in err
    assert err.startswith("ramnet-np: ")
    assert err.count("\n") == 1


def test_train_on_a_gpu_that_is_not_there_is_one_line_on_stderr(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("ramnet_np.core.arrays.why_unavailable", lambda name: "could not be loaded: no GPU")
    status, out, err = run(capsys, "train", "mqar", "--device", "gpu", "--out", str(tmp_path / "run"))
    assert (status, out) == (2, "")
    assert err == "ramnet-np: device 'gpu' cannot be used: backend 'cupy' could not be loaded: no GPU\n"


def test_train_mqar_help_teaches(capsys):
    status, out, _ = run(capsys, "train", "mqar", "--help")
    assert status == 0
    assert "Multi-query associative recall" in out
    assert "--resume" in out
    assert "--model.order INT" in out
    assert "--device {cpu,gpu}" in out
    assert "--graph {auto,on,off}" in out
    assert "digits of an address" in out


TINY = (
    *("--model.vocab", "32", "--model.width", "8", "--model.order", "2", "--model.radix", "3", "--model.ffn", "none"),
    *("--data.vocab", "32", "--data.train", "2", "12", "64", "--data.test", "2", "12", "16"),
    *("--train.batch", "8", "--train.warmup", "0", "--train.evaluate-every", "3", "--model.top-k", "4"),
)


def test_train_mqar_runs_resumes_and_refuses(capsys, tmp_path):
    out = tmp_path / "run"
    status, printed, err = run(capsys, "train", "mqar", *TINY, "--train.steps", "6", "--out", str(out))
    assert status == 0, err
    assert "finished after step 6" in printed
    assert {"curves.png", "trace.png", "metrics.jsonl"} <= {path.name for path in out.iterdir()}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 6
    # the folder is in use
    status, _, err = run(capsys, "train", "mqar", *TINY, "--train.steps", "6", "--out", str(out))
    assert status == 2
    assert "holds a run at step 6" in err
    # resumed under other settings
    status, _, err = run(capsys, "train", "mqar", *TINY, "--train.steps", "5", "--out", str(out), "--resume")
    assert status == 2
    assert "train.steps must be 6 as in the checkpoint that is resumed, or more, got 5" in err


TINY_TEXT = (
    *("--model.width", "8", "--model.order", "2", "--model.radix", "3", "--model.ffn", "none", "--model.top-k", "4"),
    *("--data.length", "16", "--train.batch", "4", "--train.evaluate-every", "3", "--train.steps", "4"),
    *("--train.warmup", "2"),
)


def test_train_text_then_generate(capsys, tmp_path):
    book, out = tmp_path / "book.txt", tmp_path / "run"
    book.write_text("Für Elise. " * 60, encoding="utf-8")
    status, printed, err = run(capsys, "train", "text", *TINY_TEXT, "--data.path", str(book), "--out", str(out))
    assert status == 0, err
    assert "finished after step 4" in printed
    assert "held-out accuracy, next byte" in printed
    assert {"curves.png", "trace.png", "metrics.jsonl"} <= {path.name for path in out.iterdir()}
    status, printed, _ = run(capsys, "generate", str(out), "--prompt", "Für", "--length", "12")
    assert status == 0
    assert printed.startswith("Für")
    again = run(capsys, "generate", str(out), "--prompt", "Für", "--length", "12")[1]
    other = run(capsys, "generate", str(out), "--prompt", "Für", "--length", "12", "--seed", "5")[1]
    assert again == printed != other
    status, _, err = run(capsys, "generate", str(out), "--prompt", "")
    assert (status, err) == (2, "ramnet-np: prompt must hold at least one character, got none\n")


def test_generate_refuses_a_model_that_does_not_read_bytes(capsys, tmp_path):
    out = tmp_path / "run"
    assert run(capsys, "train", "mqar", *TINY, "--train.steps", "1", "--out", str(out))[0] == 0
    status, _, err = run(capsys, "generate", str(out))
    assert status == 2
    assert "folder must hold a model of bytes (vocab 256, from `ramnet-np train text`), got one of vocab 32" in err
