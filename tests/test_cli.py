"""The command, as a user runs it."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ramnet_np import __version__
from ramnet_np.cli import COMMANDS, _print_result, main


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


EARLY = """
import signal, sys

class CtrlC:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == {loading!r}:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background
sys.meta_path.insert(0, CtrlC)
from ramnet_np.cli import main
sys.exit(main(["info"]))
"""


@pytest.mark.parametrize("loading", ["numpy", "tyro", "ramnet_np.runs"])
def test_ctrl_c_while_the_command_still_loads_is_one_line(loading):
    ended = subprocess.run([sys.executable, "-c", EARLY.format(loading=loading)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "ramnet-np: interrupted\n")


def test_info_shows_version_backends_device_and_threads(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    assert f"ramnet_np   {__version__}" in out
    assert f"python      {platform.python_version()}, numpy {np.__version__}, " in out
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
        return gradcheck(lambda x: (x**2, x), lambda dy, x: 3 * x * dy, {"x": np.ones(3)}, title="wrong")

    monkeypatch.setitem(cases.CASES, "wrong", wrong)
    status, out, _ = run(capsys, "gradcheck", "--match", "wrong")
    assert status == 1
    assert "0 passed, 1 failed" in out


def test_gradcheck_tries_24_elements_from_seed_0_and_prints_no_tables(capsys, monkeypatch):
    from ramnet_np.gradcheck import cases, gradcheck

    def right(samples, seed):
        asked.append((samples, seed))
        return gradcheck(lambda x: (x**2, x), lambda dy, x: 2 * x * dy, {"x": np.ones(3)}, title="right")

    asked = []
    monkeypatch.setitem(cases.CASES, "right", right)
    status, out, _ = run(capsys, "gradcheck", "--match", "right")
    assert (status, asked) == (0, [(24, 0)])
    assert "right: PASS" not in out
    assert "1 passed, 0 failed" in out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_experiment_names_the_grids(capsys, flag):
    from ramnet_np.experiment.grid import GRIDS

    status, out, err = run(capsys, "experiment", flag)
    assert (status, err) == (0, "")
    assert f"usage: ramnet-np experiment {{{', '.join(GRIDS)}, plot}} [options]" in out


@pytest.mark.parametrize(("failed", "signal", "status"), [(0, None, 0), (2, None, 1), (0, 2, 130), (2, 15, 143)])
def test_the_status_of_experiment_tells_of_failures_and_signals(capsys, monkeypatch, failed, signal, status):
    def run_experiment(names, options):
        reports = ["runs/x/mqar.md", "runs/x/curves.png"] if failed else []
        reports = [Path(report) for report in reports]
        asked.append((names, options.out))
        return SimpleNamespace(
            finished=3, left=1, failed=failed, results=Path("runs/x/results.jsonl"), reports=reports, signal=signal
        )

    asked = []
    monkeypatch.setattr("ramnet_np.experiment.runner.run_experiment", run_experiment)
    found, out, _ = run(capsys, "experiment", "mqar-order", "mqar-state", "--out", "runs/x")
    assert (found, asked) == (status, [(["mqar-order", "mqar-state"], Path("runs/x"))])
    where = "runs/x/results.jsonl, runs/x" if failed else "runs/x/results.jsonl"
    assert out == f"3 finished now, 1 left, {failed} failed; in {where}\n"


def test_plot_of_experiment_draws_what_it_is_given(capsys, monkeypatch):
    given = []
    monkeypatch.setattr("ramnet_np.experiment.report.write_report", lambda *args: given.append(args) or "a table")
    assert run(capsys, "experiment", "plot", "a/results.jsonl", "b.jsonl", "--out", "figures")[:2] == (0, "a table\n")
    assert given == [((Path("a/results.jsonl"), Path("b.jsonl")), Path("figures"))]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["experiment"], "experiment must be one of mqar-order, "),
        (["experiment", "mqar-orders"], "plot, got 'mqar-orders'"),
        (["fly"], "command must be one of demo, train, experiment, tokenize, evaluate, generate, info,"),
        (["train"], "train must be told what to train on, 'mqar' or 'text', got 'nothing'"),
        (["train", "poems"], "train must be told what to train on, 'mqar' or 'text', got 'poems'"),
        (["train", "text", "--data.path", "nowhere.txt"], "data.path must be a file or a folder, got 'nowhere.txt'"),
        (["generate", "nowhere"], "folder must hold a run or a checkpoint, got 'nowhere', which is no folder"),
        (["train", "mqar", "--preset", "huge"], "preset must be one of"),
        (["info", "--preset", "huge"], "got 'huge'"),
        (["train", "mqar", "--out", ""], "--out must have a value, got ''"),
        (["train", "text", "--data.path="], "--data.path must have a value, got ''"),
        (["generate", ""], "an argument must have a value, got ''"),
        (
            ["generate", "lab/model"],
            "no folder; a model of the Hugging Face Hub is fetched by `hf download lab",
        ),
        (["train", "mqar", "--model.gamma", "nan"], "gamma must be between -1e+30 and 1e+30, got nan"),
        (["train", "mqar", "--model.order", "1000000000"], "order must be between 1 and 31, got 1000000000"),
        (["train", "mqar", "--model.layers", "1000000000"], "layers must be between 1 and 4096, got 1000000000"),
        (["train", "mqar", "--model.width", "2000000000"], "training a model of this size on this data needs at least"),
        (["train", "mqar", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["train", "mqar", "--train.steps", "many"], "--train.steps must be an integer, got 'many' (ramnet-np"),
        (["train", "mqar", "--train.clip", "much"], "--train.clip must be a number, got 'much' (ramnet-np"),
        (["train", "mqar", "--fly"], "Unrecognized options: --fly (ramnet-np train mqar --help)"),
        (["train", "mqar", "--device", "tpu"], "invalid choice 'tpu' for argument '--device'"),
        (["demo", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["gradcheck", "--samples", "0"], "samples must be at least 1, got 0"),
        (["gradcheck", "--seed", "-1"], "seed must be at least 0, got -1"),
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


@pytest.mark.parametrize(
    "command", ["train mqar", "train text", "tokenize", "evaluate", "generate", "demo", "info", "gradcheck", "bench"]
)
def test_help_fits_a_screen(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = run(capsys, *command.split(), "--help")
    assert status == 0
    assert len(out.splitlines()) <= 40
    if command.startswith("train"):
        assert max(map(len, out.splitlines())) <= 100
        assert "--preset NAME" in out
        assert f"ramnet-np {command} --help-all" in out


def test_short_help_names_options_that_exist_with_a_presets_values(capsys):
    flags = [line.split()[0] for line in run(capsys, "train", "mqar", "-h")[1].splitlines() if line.startswith("  --")]
    every = run(capsys, "train", "mqar", "--help-all")[1]
    assert len(flags) > 15
    assert all(f"{flag} " in every or f"{flag}, " in every for flag in flags if flag != "--preset")
    assert "order N            U, digits of an address [3]" in run(capsys, "train", "mqar", "-h", "--preset", "demo")[1]


def test_a_terminal_without_the_characters_gets_others():
    command = [sys.executable, "-c", "from ramnet_np import cli; cli.main(['--version']); print('✓ →')"]
    result = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=True)
    assert result.stdout.split()[1:] == [b"?", b"?"]


def test_output_that_nobody_reads_is_no_error():
    command = f"{sys.executable} -m ramnet_np.cli train mqar --help-all | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_pictures_that_need_latex_do_not(tmp_path):
    """A user's matplotlibrc, on a machine that has no LaTeX."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    args = ["train", "mqar", *TINY, "--train.steps", "2", "--train.warmup", "1", "--out", str(tmp_path / "run")]
    env = os.environ | {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    command = [sys.executable, "-m", "ramnet_np.cli", *args]
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert "in " + str(tmp_path / "run") + ": curves.png, trace.png, metrics.jsonl" in result.stdout


def test_train_mqar_help_teaches(capsys):
    status, out, _ = run(capsys, "train", "mqar", "--help-all")
    assert status == 0
    assert "Multi-query associative recall" in out
    assert "--resume" in out
    assert "--model.order INT" in out
    assert "--device {cpu,gpu}" in out
    assert "--graph {auto,on,off}" in out
    assert "digits of an address" in out


@pytest.mark.parametrize("flag", ["-h", "--help", "--help-all"])
def test_help_of_train_names_its_kinds(capsys, flag):
    status, out, err = run(capsys, "train", flag)
    assert (status, err) == (0, "")
    assert out.startswith("usage: ramnet-np train {mqar,text} [--preset NAME] [options] ")


def test_what_a_run_has_reached_is_printed(capsys, tmp_path):
    reached = {"step": 7, "seconds": 2.6, "accuracy": {"next byte": 0.5}, "checkpoint": tmp_path / "checkpoints/step-7"}
    measured = {"bits_per_byte": 2.0, "nats": 1.5, "perplexity": 4.25}
    found = {"status": "finished", "tokens_per_second": 1234.5, "measured": measured, "signal": None}
    (tmp_path / "curves.png").touch()
    _print_result(tmp_path, SimpleNamespace(**reached, **found))
    assert capsys.readouterr().out.splitlines() == [
        "finished after step 7, 3 s, 1,234 tokens/s",
        "held-out accuracy, next byte: 50.00%",
        "held out: 2.0000 bits a byte, 1.5000 nats a token, perplexity 4.25",
        f"in {tmp_path}: curves.png, metrics.jsonl, checkpoints/step-7",
    ]
    (tmp_path / "curves.png").unlink()
    found = {"status": "interrupted", "tokens_per_second": 0, "measured": {}, "signal": 2}
    with pytest.raises(SystemExit) as end:
        _print_result(tmp_path, SimpleNamespace(**reached, **found))
    assert end.value.code == 130
    assert capsys.readouterr().out.splitlines() == [
        "interrupted after step 7, 3 s",
        "held-out accuracy, next byte: 50.00%",
        f"in {tmp_path}: metrics.jsonl, checkpoints/step-7",
        "no curves yet: the first record of the training comes after train.log_every steps",
        "--resume with the same settings goes on from here",
    ]


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
    typed = "F\udcc3\udcbcr"  # the bytes of "Für", as Python hands over what is typed where the encoding is another
    assert run(capsys, "generate", str(out), "--prompt", typed, "--length", "12")[1] == printed
    for option, wrong, words in (("--length", "-1", "length must"), ("--temperature", "nan", "temperature must")):
        status, printed, err = run(capsys, "generate", str(out), option, wrong)
        assert (status, printed) == (2, "")
        assert err.startswith(f"ramnet-np: {words} be ")
        assert err.count("\n") == 1
    status, _, err = run(capsys, "generate", str(out), "--prompt", "")
    assert (status, err) == (2, "ramnet-np: prompt must hold at least one character, got none\n")


def test_generate_refuses_a_model_that_does_not_read_bytes(capsys, tmp_path):
    out = tmp_path / "run"
    assert run(capsys, "train", "mqar", *TINY, "--train.steps", "1", "--out", str(out))[0] == 0
    status, _, err = run(capsys, "generate", str(out))
    assert status == 2
    assert "folder must hold a model of bytes (vocab 256, from `ramnet-np train text`), got one of vocab 32" in err


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf"])
def test_bench_refuses_a_time_that_is_none(capsys, seconds):
    status, printed, err = run(capsys, "bench", "--seconds", seconds)
    assert (status, printed) == (2, "")
    assert err.startswith("ramnet-np: seconds must be above 0 and finite, got ")
