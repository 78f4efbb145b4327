"""Mutation testing: small changes of the code, one at a time, and whether its tests notice: ``make test-mutants``.

    python -m tests.mutants                          # a sample of 150 mutants
    python -m tests.mutants --sample 40 --seed 3 --only core/retention

The sample is drawn from all mutants of the files in ``TESTS``. Each is made in a copy of the library, in which the
tests of its file run until the first one fails. A mutant that no test notices has survived.

    comparison   < to <=, == to !=, in to not in           arithmetic   + to -, * to /, // to *
    constant     0 to 1, n to n + 1, True to False          condition   if x to if not x, and to or
    statement    an assignment, a call, a raise removed
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
LIMIT = 120  # seconds: a mutant may never end
_MATHEMATICS = ("tests/core/test_decoder.py", "tests/core/test_attention.py", "tests/test_mathematics.py")
_SPARSE = ("tests/core/test_sparse_faults.py", "tests/core/test_sparse_state.py", "tests/model/test_sparse.py")
_CPU = tuple(f"tests/kernels/{name}.py" for name in ("test_cpu_agreement", "test_packed", "test_cpu_repeatability"))
_FEW_ROWS = ("tests/kernels/test_cpu_few_rows.py",)
_COMPILED = ("tests/kernels/test_cpu_cache.py", "tests/kernels/test_cpu_threads.py")
_TORCH = tuple(f"tests/bridges/{name}.py" for name in ("test_torch_stand_ins", "test_torch_step", "test_torch"))
_GRIDS = tuple(f"tests/experiment/{name}.py" for name in ("test_sweep", "test_runner", "test_failures", "test_whole"))
_RUNS = ("tests/experiment/test_one_run.py", "tests/experiment/test_text_grids.py")
_TABLES = tuple(f"tests/experiment/{name}.py" for name in ("test_report", "test_text_report", "test_whole"))
_STEPS = tuple(f"tests/train/{name}.py" for name in ("test_carried", "test_loop", "test_settings"))
_WHOLE_RUNS = tuple(f"tests/train/{name}.py" for name in ("test_loop", "test_folder", "test_settings", "test_stop"))
_TEXTS = tuple(f"tests/data/{name}.py" for name in ("test_text", "test_tokens", "test_packed_rows"))
_PLACES = tuple(f"tests/kernels/test_cuda_{name}.py" for name in ("layout", "launch_sizes", "packed", "launches"))
_CUDA_ROWS = tuple(f"tests/kernels/test_cuda_{name}.py" for name in ("sparse", "segment_rows", "slot_numbers"))
_CUDA_MEMORY = ("tests/kernels/test_cuda_memory_on_cpu.py",)
_STATES = ("tests/model/test_state_file.py", "tests/model/test_sparse.py")
# file -> what must notice a change of it, the fastest first
TESTS = {
    "ramnet_np/core/cape.py": _MATHEMATICS,
    "ramnet_np/core/decoder.py": _MATHEMATICS,
    "ramnet_np/core/dense.py": _MATHEMATICS,
    "ramnet_np/core/memory.py": (*_MATHEMATICS, "tests/kernels/test_packed.py"),
    "ramnet_np/core/product_softmax.py": _MATHEMATICS,
    "ramnet_np/core/topk.py": ("tests/core/test_topk.py", *_MATHEMATICS),
    "ramnet_np/core/retention.py": ("tests/core/test_retention.py", *_MATHEMATICS),
    "ramnet_np/core/mass_aware.py": ("tests/core/test_retention.py", *_MATHEMATICS),
    "ramnet_np/core/attention.py": (*_MATHEMATICS, "tests/core/test_checks.py"),
    "ramnet_np/core/checks.py": ("tests/core/test_checks.py", "tests/core/test_array_kinds.py"),
    "ramnet_np/core/option_checks.py": ("tests/core/test_checks.py", "tests/core/test_array_kinds.py"),
    "ramnet_np/core/require.py": ("tests/core/test_checks.py", "tests/core/test_array_kinds.py"),
    "ramnet_np/core/state_checks.py": ("tests/core/test_state_checks.py",),
    "ramnet_np/model/checks.py": ("tests/model/test_config.py", "tests/model/test_checkpoint.py"),
    "ramnet_np/model/files.py": ("tests/model/test_files.py", "tests/train/test_checkpoint.py"),
    "ramnet_np/model/unfinished.py": ("tests/model/test_unfinished.py",),
    "ramnet_np/train/checkpoint.py": ("tests/train/test_checkpoint.py", "tests/model/test_unfinished.py"),
    "ramnet_np/core/sparse_checks.py": ("tests/core/test_sparse_faults.py",),
    "ramnet_np/core/slot_numbers.py": _SPARSE,
    "ramnet_np/core/slot_rows.py": _SPARSE,
    "ramnet_np/core/sparse_state.py": _SPARSE,
    "ramnet_np/core/sparse_memory.py": _SPARSE,
    "ramnet_np/core/tiered_rows.py": _SPARSE,
    "ramnet_np/core/disk_pages.py": _SPARSE,
    "ramnet_np/core/row_format.py": _SPARSE,
    "ramnet_np/core/rows_over_disk.py": ("tests/kernels/test_cuda_sparse.py",),
    "ramnet_np/core/packed.py": ("tests/kernels/test_packed.py", "tests/model/test_live_tokens.py"),
    "ramnet_np/model/live_tokens.py": ("tests/model/test_live_tokens.py", "tests/kernels/test_packed.py"),
    "ramnet_np/model/ahead.py": ("tests/model/test_ahead.py",),
    "ramnet_np/model/room.py": ("tests/model/test_ahead.py",),
    "ramnet_np/layers/softmax_attention.py": ("tests/layers/test_softmax_attention.py",),
    "ramnet_np/model/sparse.py": _STATES,
    "ramnet_np/model/state_file.py": _STATES,
    "ramnet_np/model/generation.py": ("tests/model/test_generation.py", *_STATES),
    "ramnet_np/model/call_checks.py": ("tests/model/test_network.py", "tests/model/test_live_tokens.py", *_STATES),
    "ramnet_np/model/memory.py": ("tests/model/test_memory.py",),
    "ramnet_np/train/carried.py": _STEPS,
    "ramnet_np/train/config.py": ("tests/train/test_settings.py", *_STEPS),
    **dict.fromkeys((f"ramnet_np/train/{name}.py" for name in ("folder", "interrupt", "loop", "steps")), _WHOLE_RUNS),
    "ramnet_np/train/gpu_trainer.py": ("tests/train/test_gpu_trainer.py", "tests/train/test_carried.py"),
    "ramnet_np/train/gradients.py": (*_STEPS, "tests/data/test_packed_rows.py"),
    "ramnet_np/train/metrics.py": ("tests/train/test_metrics.py", *_WHOLE_RUNS),
    "ramnet_np/train/optim.py": ("tests/train/test_optim.py", "tests/train/test_loop.py"),
    "ramnet_np/train/schedule.py": ("tests/train/test_schedule.py",),
    "ramnet_np/train/slot_use.py": ("tests/train/test_carried.py", "tests/runs/test_books.py"),
    "ramnet_np/train/text_loss.py": ("tests/train/test_text_loss.py", "tests/train/test_carried.py"),
    "ramnet_np/train/token_loss.py": ("tests/runs/test_books.py",),
    "ramnet_np/train/trainer.py": (*_STEPS, "tests/data/test_packed_rows.py"),
    "ramnet_np/train/step_graph.py": ("tests/train/test_step_graph.py",),
    "ramnet_np/train/gradient_sum.py": ("tests/train/test_step_graph.py", "tests/train/test_ranks.py"),
    "ramnet_np/train/shards.py": ("tests/train/test_shards.py",),
    "ramnet_np/data/packed_rows.py": ("tests/data/test_packed_rows.py",),
    "ramnet_np/data/batches.py": ("tests/data/test_batches.py", "tests/data/test_gpu_dataset.py"),
    "ramnet_np/data/codec.py": _TEXTS,
    "ramnet_np/data/corpus.py": _TEXTS,
    "ramnet_np/data/mqar.py": ("tests/data/test_mqar.py",),
    "ramnet_np/data/names.py": ("tests/runs/test_books.py",),
    "ramnet_np/data/needles.py": ("tests/runs/test_books.py",),
    "ramnet_np/data/stop.py": ("tests/data/test_stop.py", "tests/data/test_text.py"),
    "ramnet_np/data/streams.py": ("tests/data/test_streams.py",),
    "ramnet_np/data/synthetic_facts.py": ("tests/data/test_text.py",),
    "ramnet_np/data/text.py": _TEXTS,
    "ramnet_np/data/tokens.py": _TEXTS,
    "ramnet_np/experiment/book_records.py": _TABLES,
    "ramnet_np/experiment/failures.py": ("tests/experiment/test_failures.py", "tests/experiment/test_runner.py"),
    "ramnet_np/experiment/one_run.py": (*_RUNS, "tests/experiment/test_runner.py"),
    "ramnet_np/experiment/records.py": ("tests/experiment/test_records.py", *_TABLES),
    "ramnet_np/experiment/report.py": _TABLES,
    "ramnet_np/experiment/runner.py": _GRIDS[1:],
    "ramnet_np/experiment/summary.py": _TABLES,
    "ramnet_np/experiment/sweep.py": _GRIDS,
    "ramnet_np/experiment/text_report.py": _TABLES,
    "ramnet_np/experiment/text_tables.py": _TABLES,
    "ramnet_np/experiment/workers.py": ("tests/experiment/test_workers.py", *_GRIDS[1:]),
    "ramnet_np/experiment/ray_pool.py": ("tests/experiment/test_ray_pool.py", "tests/experiment/test_ray.py"),
    "ramnet_np/runs/book_tests.py": ("tests/runs/test_books.py",),
    "ramnet_np/runs/slot_tests.py": ("tests/runs/test_books.py",),
    "ramnet_np/runs/books.py": ("tests/runs/test_books.py",),
    "ramnet_np/runs/tier_options.py": ("tests/runs/test_generate.py",),
    "ramnet_np/runs/watch.py": ("tests/runs/test_launch.py",),
    "ramnet_np/layers/ram_step.py": ("tests/kernels/test_cpu_few_rows.py",),
    "ramnet_np/layers/sampling.py": ("tests/model/test_sampling.py",),
    "ramnet_np/layers/uniform.py": ("tests/model/test_sampling.py",),
    "ramnet_np/model/sampling.py": ("tests/model/test_sampling.py",),
    "ramnet_np/bridges/jax.py": ("tests/bridges/test_jax.py",),
    "ramnet_np/bridges/ramnet_ops.py": ("tests/bridges/test_ramnet_ops.py",),
    "ramnet_np/bridges/tensors.py": _TORCH,
    "ramnet_np/bridges/torch.py": _TORCH,
    "ramnet_np/bridges/torch_ops.py": _TORCH,
    "ramnet_np/__init__.py": ("tests/test_import.py",),
    "ramnet_np/cli.py": ("tests/test_cli.py",),
    **dict.fromkeys((f"kernels/cpu/{name}.py" for name in ("decode", "beam", "network")), _CPU),
    **dict.fromkeys((f"kernels/cpu/{name}.py" for name in ("memory", "mass", "content", "mass_aware")), _CPU),
    **dict.fromkeys((f"kernels/cpu/{name}.py" for name in ("slots", "share", "arrays", "__init__")), _CPU),
    "kernels/cpu/step.py": (*_CPU, *_SPARSE),
    **dict.fromkeys((f"kernels/cpu/{name}.py" for name in ("products", "norm", "bfloat16")), _FEW_ROWS),
    **dict.fromkeys((f"kernels/cpu/{name}.py" for name in ("cache", "compiling", "threads")), _COMPILED),
    "kernels/cpu/sparse.py": _SPARSE,
    "kernels/cpu/ram_step.py": ("tests/kernels/test_cpu_few_rows.py",),
    "kernels/cpu/spans.py": ("tests/kernels/test_packed.py",),
    "kernels/cuda/layers/attention_step.py": ("tests/kernels/test_cuda_attention_step_on_cpu.py",),
    **dict.fromkeys((f"kernels/cuda/memory/{name}.py" for name in ("content", "mass_backward")), _CUDA_MEMORY),
    "kernels/cuda/memory/layout.py": _PLACES,
    "kernels/cuda/memory/packed.py": ("tests/kernels/test_packed.py", *_PLACES),
    "kernels/cuda/memory/segments.py": _PLACES,
    **dict.fromkeys(
        (f"kernels/cuda/sparse/{name}.py" for name in ("arriving", "beside", "numbers", "rows")), _CUDA_ROWS
    ),
    "kernels/cuda/runtime/overlap.py": ("tests/kernels/test_cuda_overlap.py",),
    "kernels/cpu/retention.py": ("tests/kernels/test_update_rules.py", "tests/kernels/test_cpu_agreement.py"),
}
SWAPPED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult, ast.Mod: ast.Mult, ast.USub: ast.UAdd,
}  # fmt: skip


class Mutant(NamedTuple):
    file: str
    node: int  # its number in the order of ast.walk
    way: int


def mutants_of(file: str, text: str) -> Iterator[Mutant]:
    """Every mutant of a file. Annotations, assertions and the words of errors are left as they are."""
    tree = ast.parse(text)
    left = untouched(tree)
    for number, node in enumerate(ast.walk(tree)):
        if id(node) not in left:
            yield from (Mutant(file, number, way) for way in range(ways(node)))


def made(mutant: Mutant, text: str) -> tuple[str, str]:
    """The changed file, and in words where and how it was changed."""
    tree = ast.parse(text)
    node = next(node for number, node in enumerate(ast.walk(tree)) if number == mutant.node)
    line, before = getattr(node, "lineno", 0), ast.unparse(node)
    mutate(node, mutant.way)
    words = f"{mutant.file}:{line}: {before[:70]} -> {ast.unparse(node)[:70]}"
    return ast.unparse(tree), " ".join(words.split())


def ways(node: ast.AST) -> int:
    """In how many ways a node can be changed."""
    if isinstance(node, ast.Compare):
        return len(node.ops)
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp):
        return int(type(node.op) in SWAPPED)
    if isinstance(node, ast.Constant):
        return int(isinstance(node.value, bool | int | float))
    if isinstance(node, ast.Expr):
        return int(isinstance(node.value, ast.Call))
    return int(isinstance(node, ast.If | ast.IfExp | ast.Assign | ast.AugAssign | ast.Raise))


def mutate(node: ast.AST, way: int) -> None:
    """Change ``node`` in its tree."""
    match node:
        case ast.Compare():
            node.ops[way] = SWAPPED[type(node.ops[way])]()
        case ast.BinOp() | ast.BoolOp() | ast.UnaryOp():
            node.op = SWAPPED[type(node.op)]()
        case ast.Constant():
            node.value = not node.value if isinstance(node.value, bool) else node.value + 1
        case ast.If() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case _:  # a statement that is removed: the object stays in its list, as `pass`
            node.__class__ = ast.Pass  # type: ignore[assignment]


def untouched(tree: ast.AST) -> set[int]:
    """The nodes, by id, that no test could or should watch."""
    found: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        match node:
            case ast.arg() | ast.AnnAssign():
                parts = [node.annotation]
            case ast.FunctionDef():
                parts = [node.returns]
            case ast.JoinedStr() | ast.Assert():
                parts = [node]
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                parts = [node]
        found |= {id(inner) for part in parts if part is not None for inner in ast.walk(part)}
    return found


def copied(folder: Path) -> None:
    """The library and its tests in ``folder``, with the kernels where they are installed."""
    for name in ("ramnet_np", "kernels", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "ramnet_np/kernels").symlink_to(folder / "kernels")


def outcome(folder: Path, file: str, text: str) -> str:
    """What the tests of ``file`` say with ``text`` in its place: "noticed", "survived" or "no answer" within LIMIT."""
    path = folder / file
    whole = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    try:
        return "survived" if passes(folder, [file], LIMIT) else "noticed"
    except subprocess.TimeoutExpired:
        return "no answer"
    finally:
        path.write_text(whole, encoding="utf-8")


def passes(folder: Path, files: Iterable[str], limit: float | None = None, keep: bool = False) -> bool:
    """Whether the tests of ``files`` pass in ``folder``. TimeoutExpired after ``limit`` seconds.

    ``keep``: what Python compiles. Later runs then start sooner, and see by its time that a file has changed.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", "-m", "not gpu"]
    bytecode = "" if keep else "1"  # empty: it is written
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": bytecode, "NUMBA_CACHE_DIR": str(folder / "numba")}
    tests = dict.fromkeys(test for file in files for test in TESTS[file])
    where = [file if file.startswith("ramnet_np/") else f"ramnet_np/{file}" for file in files]
    if examples := [file for file in where if not file.startswith("ramnet_np/kernels/cuda/")]:  # those need a GPU
        examples = ["--doctest-modules", *examples]
    done = subprocess.run(
        [*command, *tests, *examples], cwd=folder, env=environment, timeout=limit, capture_output=True
    )
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, default=150, help="how many mutants to try")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--only", default="", help="a part of the names of the files to change")
    parser.add_argument("--minutes", type=float, default=60, help="no mutant begins later")
    options = parser.parse_args()
    files = {file: (ROOT / file).read_text(encoding="utf-8") for file in TESTS if options.only in file}
    every = [mutant for file, text in files.items() for mutant in mutants_of(file, text)]
    chosen = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    print(f"{len(every)} mutants of {len(files)} files; {len(chosen)} are tried, seed {options.seed}", flush=True)
    found, began = Counter[tuple[str, str]](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copied(Path(folder))
        # a test that fails anyway would notice every mutant; and what Numba compiles is compiled before time counts
        if not passes(Path(folder), dict.fromkeys(mutant.file for mutant in chosen), keep=True):
            raise SystemExit("the tests must pass before the code is changed, got one that fails")
        began = time.monotonic()
        for mutant in tqdm(chosen, unit="mutant"):
            if time.monotonic() - began > 60 * options.minutes:
                break
            text, words = made(mutant, files[mutant.file])
            said = outcome(Path(folder), mutant.file, text)
            found[mutant.file, said] += 1
            if said != "noticed":
                tqdm.write(f"{said}: {words}", file=sys.stdout)
                sys.stdout.flush()
    for (file, said), count in sorted(found.items()):
        print(f"{file}: {count} {said}")
    sums = Counter[str]()
    for (_, said), count in found.items():
        sums[said] += count
    print(", ".join(f"{count} {said}" for said, count in sums.items()), f"in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
