"""Execute the notebooks from scratch, each in a fresh kernel; exit status 1 if a cell or an exercise's check fails.

python notebooks/run.py                  all of them, two at a time; the files stay as they are
python notebooks/run.py 02 05            those whose names start so
python notebooks/run.py --save 02        and write the outputs into the file, as they are committed

The notebooks that the site offers in a browser run with NumPy and Matplotlib alone (``alone.py``).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
LIMIT = 600  # seconds a cell may take before it counts as hung
NOTICE = "compiling kernels for the CPU"
THREADS = ("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
IN_BROWSER = ("01", "02", "03", "04", "05", "06")


def execute(path: Path, save: bool, threads: int) -> tuple[float, str]:
    """Seconds taken, and what went wrong ("" if nothing)."""
    notebook = nbformat.read(path, as_version=4)
    arguments = ["--IPKernelApp.log_level=ERROR"]
    if path.name.startswith(IN_BROWSER):
        arguments.append("--IPKernelApp.exec_lines=import alone")
    client = NotebookClient(
        notebook,
        timeout=LIMIT,
        kernel_name="python3",
        resources={"metadata": {"path": HERE}},
        extra_arguments=arguments,
    )
    started = time.perf_counter()
    try:
        client.execute(env=os.environ | dict.fromkeys(THREADS, str(threads)))
    except CellExecutionError as error:
        return time.perf_counter() - started, str(error)
    seconds = time.perf_counter() - started
    without_notices(notebook)
    trouble = warnings_in(notebook)
    if save and not trouble:
        nbformat.write(cleaned(notebook), path)
    return seconds, trouble


def without_notices(notebook: nbformat.NotebookNode) -> None:
    """Take out the word before kernels are compiled: it depends on what this machine has compiled before."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                output.text = "".join(line for line in output.text.splitlines(True) if not line.startswith(NOTICE))
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text]


def warnings_in(notebook: nbformat.NotebookNode) -> str:
    """What the cells said on stderr: a notebook is to be free of warnings."""
    return "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream" and output.name == "stderr"
    )


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without times and versions: only what a reader sees."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = joined(cell.outputs)
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).clear()
    return notebook


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Printed lines that follow each other as one output: where they were cut depends on the moment."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream" and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of file names; none: all notebooks")
    parser.add_argument("--save", action="store_true", help="write the outputs into the files")
    parser.add_argument("--workers", type=int, default=2, help="notebooks at a time (default 2)")
    args = parser.parse_args()
    paths = sorted(p for p in HERE.glob("[0-9]*.ipynb") if not args.names or p.name.startswith(tuple(args.names)))
    if not paths:
        parser.error(f"names must begin a notebook's name, got {' '.join(args.names)}")
    workers = min(args.workers, len(paths))
    threads = max(1, (os.cpu_count() or 1) // workers)
    failed = 0
    with ProcessPoolExecutor(workers) as pool:
        running = {
            pool.submit(execute, path, args.save, threads): path for path in reversed(paths)
        }  # the longest first
        for done in as_completed(running):
            seconds, trouble = done.result()
            failed += bool(trouble)
            print(f"{running[done].name:34s} {seconds:6.1f} s  {'FAILED' if trouble else 'passed'}", flush=True)
            if trouble:
                print(trouble, file=sys.stderr)
    print(f"{len(paths) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
