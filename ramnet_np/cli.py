"""The command ``ramnet-np``. Every subcommand imports what it needs when it runs, so that ``--help`` is quick.

Nor does this file import much before :func:`main` has begun: a Ctrl-C before that would show a traceback.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

HELP_FLAGS = {"-h", "--help"}
HELP = """\
usage: ramnet-np COMMAND [options]

RAM-Net in plain NumPy and fast kernels: linear attention over a large, sparsely addressed memory.

commands:
  demo         train a small RAM-Net to recall, in about a minute, and show what it recalls
  train mqar   train a RAM-Net on multi-query associative recall: hours on a CPU; with --preset demo a minute
  train text   train a language model on any file, on a folder of .txt files or of tokens
  tokenize     a folder of .txt files becomes tokens: trains a byte-level BPE and encodes every file
  evaluate     nats, bits a byte and perplexity of a language model, by the position in a document too
  experiment   grids of runs, resumable, over several GPUs: mqar-order, mqar-state, ...; `plot` draws their results
  generate     let a model trained on text write, with its state carried from byte to byte
  info         version, backends found or why not, device, threads; --preset NAME counts a model
  gradcheck    check every gradient by finite differences
  bench        time the operation on every backend, with ratios and a memory-traffic floor

`ramnet-np COMMAND --help` explains a command's options; `ramnet-np train mqar --help-all` all settings of a run.
"""

TRAIN_EXAMPLES = """
Multi-query associative recall (MQAR):
a sequence shows pairs (key, value), then asks for each key once more.

  ramnet-np train mqar                             the paper's task: hours on CPUs, minutes on a GPU
  ramnet-np train mqar --preset demo               a small task: about a minute on a CPU
  ramnet-np train mqar --model.order 8 --seed 1    any setting of model, data and training
  ramnet-np train mqar --out runs/a --resume       go on after Ctrl-C, to the same bits
"""
MQAR_DATA = (("--data.vocab N", "number of tokens, half of them keys; model.vocab must hold them"),)

TEXT_EXAMPLES = """
A language model: of bytes, for which any file or folder of .txt files will do, or of tokens.

  ramnet-np train text                               a text made here, whose facts must be recalled
  ramnet-np train text --preset file --data.path book.txt --out runs/book
  ramnet-np train text --preset file --data.path novels --data.carry-state    whole books in order
  ramnet-np tokenize novels --out tokens             8192 pieces of text; then --data.path tokens
  ramnet-np generate runs/book --prompt "The "       let it write
  ramnet-np evaluate runs/book --path novels         bits a byte
"""
TEXT_DATA = (
    ("--data.path PATH", "a file, a folder of .txt files or of tokens; none: made here"),
    ("--data.length N", "bytes or tokens of a training sequence"),
    ("--data.held-out X", "a share (0.05), a number of files (9) or their names ('valid/*')"),
    ("--data.carry-state", "whole documents in order, the memory carried from window to window"),
)

PRESETS = """
Presets: {presets}. The options start from the values of --preset {name}, which are shown as defaults below.
"""

EXPERIMENT_EXAMPLES = """
Grids of training runs, on multi-query associative recall and on text; results are appended to OUT/results.jsonl.

  ramnet-np experiment mqar-order --device gpu --side-by-side 8          accuracy against slots M and order U; the
                                                                         runs spread over all GPUs, 8 on each
  ramnet-np experiment mqar-state --device gpu --max-minutes 9           stops in time; the same again goes on
  ramnet-np experiment mqar-state mqar-order --device gpu                two grids together, in one folder
  ramnet-np experiment mqar-order --device gpu --ray                     on every GPU of a Ray cluster
  ramnet-np experiment mqar-order --quick --side-by-side 2               a reduced grid, in minutes on a CPU
  ramnet-np experiment mqar-order --only 'm256-*' --epochs 16            some points, trained longer
  ramnet-np experiment language-rivals --text tokens --device gpu        language models on novels
  ramnet-np experiment plot runs/mqar-order/results.jsonl                figures and tables
"""


def info(preset: str | None = None) -> None:
    """Show version, backends (or why one cannot run), device and threads.

    Args:
        preset: Print this preset's parameters and state instead, per layer and kind (for example paper-340m).
    """
    import platform

    import numpy as np

    from ramnet_np import __version__, backends
    from ramnet_np import model as models
    from ramnet_np.backend import backend_for
    from ramnet_np.runs.hardware import processor

    if preset is not None:
        print(models.format_count(models.preset(preset)))
        return
    print(f"ramnet_np   {__version__}")
    print(f"python      {platform.python_version()}, numpy {np.__version__}, {platform.system()} {platform.machine()}")
    print(f"device      {processor()}")
    default = backend_for(np.zeros(1)).name
    for name, status in backends().items():
        print(f"backend     {name}: {status}{', the default for NumPy arrays' if name == default else ''}")
    if default == "numba":
        import numba

        print(f"threads     {numba.get_num_threads()} (numba {numba.__version__}; NUMBA_NUM_THREADS changes it)")
    print(f"presets     {', '.join(models.PRESETS)} (--preset NAME counts one)")


def gradcheck(match: str = "", samples: int = 24, seed: int = 0, backend: str = "numpy", verbose: bool = False) -> None:
    """Check every gradient by central finite differences in float64: operation, layers, small models.

    Ends with exit status 1 if a gradient is wrong.

    Args:
        match: Only the cases whose name contains this.
        samples: Elements of each input to check (a third of it in the models, which have many inputs).
        seed: Draws the inputs, the direction and the elements.
        backend: Whose operation is checked.
        verbose: Print a table for each case, with a row for each input.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    from ramnet_np.backend import use_backend
    from ramnet_np.gradcheck.cases import run_cases, summary_table

    with use_backend(backend):
        reports = run_cases(match, samples, seed)
    if verbose:
        print("\n".join(map(str, reports)))
    print(summary_table(reports))
    if not all(report.passed for report in reports):
        raise SystemExit(1)


def demo(out: Path = Path("demo"), seed: int = 0) -> None:
    """Train a small RAM-Net to recall, in about a minute on two cores, then show a sequence it has never seen.

    Args:
        out: Folder for the curves, the slot access trace, metrics and checkpoint; a demo already there is replaced.
        seed: Decides the data, its order and the initial weights.
    """
    from ramnet_np.runs.demo import run_demo

    _exit_if_interrupted(run_demo(out, seed=seed).signal)


def _bench(args: list[str]) -> None:
    from ramnet_np.kernels.bench.cpu import BenchOptions, run_bench
    from ramnet_np.runs.arguments import parse

    run_bench(parse(BenchOptions, args, "ramnet-np bench"))


def _train(args: list[str]) -> None:
    kinds: dict[str, Callable[[list[str]], None]] = {"mqar": _train_mqar, "text": _train_text}
    if args[:1] and args[0] in kinds:
        kinds[args[0]](args[1:])
    elif args[:1] and args[0] in (*HELP_FLAGS, "--help-all"):
        print(
            "usage: ramnet-np train {mqar,text} [--preset NAME] [options]     (ramnet-np train mqar --help tells more)"
        )
    else:
        got = args[0] if args else "nothing"
        raise ValueError(f"train must be told what to train on, 'mqar' or 'text', got {got!r}")


def _train_mqar(args: list[str]) -> None:
    from ramnet_np.runs.mqar import MQARRun, run_mqar
    from ramnet_np.runs.presets import MQAR_RUNS

    run = _read_run("mqar", MQARRun, MQAR_RUNS, TRAIN_EXAMPLES, MQAR_DATA, args)
    _on_ranks(run, ["mqar", *args], run_mqar)


def _train_text(args: list[str]) -> None:
    from ramnet_np.runs.presets import TEXT_RUNS
    from ramnet_np.runs.text import TextRun, run_text

    run = _read_run("text", TextRun, TEXT_RUNS, TEXT_EXAMPLES, TEXT_DATA, args)
    _on_ranks(run, ["text", *args], run_text)


def _on_ranks(run: Any, args: list[str], train: Callable[..., Any]) -> None:
    """Train in this process, or in several that run the same command, and print the result once."""
    from ramnet_np.runs.launch import run_on_ranks

    def train_and_print(ranks: Any) -> None:
        result = train(run, ranks=ranks)
        if ranks.rank == 0:
            _print_result(run.out, result)
        _exit_if_interrupted(result.signal)

    command = [sys.executable, "-m", "ramnet_np.cli", "train", *args]
    run_on_ranks(run.gpus or run.ranks, run.device, run.rank_timeout, command, train_and_print)


def _read_run(
    kind: str, type_: Any, presets: dict[str, Any], examples: str, data: Sequence[tuple[str, str]], args: list[str]
) -> Any:
    """The run that the arguments describe, starting from a preset; asked for help, print it and end."""
    from ramnet_np.runs.arguments import parse, take_preset
    from ramnet_np.runs.short_help import short_help

    name, rest = take_preset(args, presets)
    if not HELP_FLAGS.isdisjoint(rest):
        print(short_help(kind, presets[name], name, presets, data, examples))
        raise SystemExit(0)
    return parse(
        type_,
        ["--help" if arg == "--help-all" else arg for arg in rest],
        f"ramnet-np train {kind}",
        default=presets[name],
        description=examples + PRESETS.format(presets=", ".join(presets), name=name),
    )


def _print_result(out: Path, result: Any) -> None:
    speed = f", {result.tokens_per_second:,.0f} tokens/s" if result.tokens_per_second else ""
    print(f"{result.status} after step {result.step}, {result.seconds:.0f} s{speed}")
    for setting, accuracy in result.accuracy.items():
        print(f"held-out accuracy, {setting}: {accuracy:.2%}")
    if result.measured:
        print(
            "held out: {bits_per_byte:.4f} bits a byte, {nats:.4f} nats a token, perplexity {perplexity:.2f}".format(
                **result.measured
            )
        )
    pictures = ", ".join(name for name in ("curves.png", "trace.png") if (out / name).exists())
    files = [pictures] if pictures else []
    print(f"in {out}: {', '.join([*files, 'metrics.jsonl', str(result.checkpoint.relative_to(out))])}")
    if "curves.png" not in pictures:
        print("no curves yet: the first record of the training comes after train.log_every steps")
    if result.status == "interrupted":
        print("--resume with the same settings goes on from here")
    _exit_if_interrupted(result.signal)


def _exit_if_interrupted(signal: int | None) -> None:
    """End with the status that a shell gives to a program that a signal ended."""
    from ramnet_np.train.interrupt import exit_status

    if signal is not None:
        raise SystemExit(exit_status(signal))


def _experiment(args: list[str]) -> None:
    from ramnet_np.experiment.grid import GRIDS
    from ramnet_np.experiment.runner import Options, run_experiment
    from ramnet_np.runs.arguments import call, parse

    known = ", ".join(GRIDS)
    if args[:1] and args[0] in ("-h", "--help"):
        print(f"usage: ramnet-np experiment {{{known}, plot}} [options]     (... mqar-order --help explains them)")
        return
    if args[:1] == ["plot"]:
        return call(plot, args[1:], "experiment plot")
    names = list(takewhile(lambda arg: arg in GRIDS, args))
    if not names:
        raise ValueError(f"experiment must be one of {known}, plot, got {args[0] if args else 'nothing'!r}")
    options = parse(Options, args[len(names) :], f"ramnet-np experiment {names[0]}", description=EXPERIMENT_EXAMPLES)
    outcome = run_experiment(names, options)
    # one file by its name, several by their folder: each run has named its own
    told = [outcome.results, *(outcome.reports if len(outcome.reports) < 2 else [outcome.reports[0].parent])]
    print(
        f"{outcome.finished} finished now, {outcome.left} left, {outcome.failed} failed; in {', '.join(map(str, told))}"
    )
    _exit_if_interrupted(outcome.signal)
    if outcome.failed:
        raise SystemExit(1)


def plot(results: tuple[Path, ...], out: Path | None = None) -> None:
    """Draw the figures of some results and print their tables, ours against the paper's, as Markdown.

    Args:
        results: Files results.jsonl, of one grid or of several.
        out: Folder for the figures; none: that of the first results file. Its paper.toml has the paper's values; its
            mqar.md and language.md, if there are, are updated between their markers.
    """
    from ramnet_np.experiment.report import write_report

    print(write_report(results, out))


def _tokenize(args: list[str]) -> None:
    from ramnet_np.runs.arguments import parse
    from ramnet_np.runs.tokenize import TokenizeOptions, tokenize_folder

    print(tokenize_folder(parse(TokenizeOptions, args, "ramnet-np tokenize")).in_words())


def _evaluate(args: list[str]) -> None:
    from ramnet_np.runs.arguments import parse
    from ramnet_np.runs.books import run_book_tests
    from ramnet_np.runs.evaluate import EvaluateOptions, evaluate_text

    options = parse(EvaluateOptions, args, "ramnet-np evaluate")
    if options.tests:
        print("\n\n".join(one.in_words() for one in run_book_tests(options)))
    else:
        print(evaluate_text(options).in_words())


def _generate(args: list[str]) -> None:
    from ramnet_np.runs.arguments import parse
    from ramnet_np.runs.generate import HELP, GenerateOptions, run_generate

    if not HELP_FLAGS.isdisjoint(args):
        print(HELP, end="")
        return
    _exit_if_interrupted(run_generate(parse(GenerateOptions, args, "ramnet-np generate")))


def _called(function: Callable[..., None], args: list[str]) -> None:
    from ramnet_np.runs.arguments import call

    call(function, args)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": partial(_called, demo),
    "train": _train,
    "experiment": _experiment,
    "tokenize": _tokenize,
    "evaluate": _evaluate,
    "generate": _generate,
    "info": partial(_called, info),
    "gradcheck": partial(_called, gradcheck),
    "bench": _bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. An error that the user can correct is one line on stderr."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        _write_anything()
        _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
        print(f"ramnet-np: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ramnet-np: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(args: list[str]) -> None:
    if not args or args[0] in HELP_FLAGS:
        print(HELP, end="")
    elif args[0] == "--version":
        from ramnet_np import __version__

        print(__version__)
    elif args[0] in COMMANDS:
        from ramnet_np.runs.arguments import require_values

        require_values(args)
        COMMANDS[args[0]](args[1:])
    else:
        raise ValueError(f"command must be one of {', '.join(COMMANDS)}, got {args[0]!r}")


def _write_anything() -> None:
    """A character that the terminal cannot show becomes a question mark: no reason to end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    raise SystemExit(main())
