"""The NumPy notebooks in the browser: JupyterLite, built into the folder lite of the site.

It gets the notebooks that run with NumPy and Matplotlib alone, the files beside them, and a wheel of this package,
which installs in a browser without Numba. Nothing is fetched here: a reader's browser fetches Python itself (Pyodide,
NumPy, Matplotlib) when a notebook is opened. jupyterlite-sphinx is not used, because it puts a font of another site
into every page.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
ROOT, LITE = HERE.parent, HERE / "_lite"
IN_BROWSER = ("01", "02", "03", "04", "05", "06")
BESIDE = ("*.py", "course", "solutions", "data")  # what notebooks import and read; those that run.py needs do no harm
PACKAGE = ("ramnet_np", "kernels", "pyproject.toml", "README.md", "LICENSE")

FIRST_CELL = """\
# in the browser only: fetch the library and what it needs
import piplite

await piplite.install(["numpy", "matplotlib"])
await piplite.install("ramnet-np", deps=False)"""


def build_wheel(folder: Path) -> str:
    """The name of a wheel of the package, built from a copy of its files: setuptools leaves things behind."""
    with tempfile.TemporaryDirectory() as copy:
        for name in PACKAGE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, Path(copy, name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy)
        program = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
        command = [sys.executable, "-c", program, str(folder)]
        run = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"no wheel of the package could be built for the notebooks in the browser: {run.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel.name


def with_first_cell(text: str) -> str:
    """The notebook with a first cell that installs the package in the browser."""
    notebook = json.loads(text)
    cell = {"cell_type": "code", "execution_count": None, "id": "browser", "metadata": {}, "outputs": []}
    notebook["cells"].insert(0, cell | {"source": FIRST_CELL})
    return json.dumps(notebook, ensure_ascii=False)


def gather(contents: Path) -> None:
    """The notebooks and what they import and read."""
    notebooks = ROOT / "notebooks"
    for path in notebooks.glob("[0-9][0-9]_*.ipynb"):
        if path.name.startswith(IN_BROWSER):
            (contents / path.name).write_text(with_first_cell(path.read_text(encoding="utf-8")), encoding="utf-8")
    for path in [path for pattern in BESIDE for path in notebooks.glob(pattern)]:
        if path.is_dir():
            shutil.copytree(path, contents / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, contents)


def build(app: Any, error: Exception | None) -> None:
    """When the pages are done: gather everything in docs/_lite and let JupyterLite build it."""
    if error is not None or app.builder.format != "html":
        return
    shutil.rmtree(LITE, ignore_errors=True)
    contents, wheels, site = LITE / "contents", LITE / "wheels", Path(app.outdir) / "lite"
    shutil.rmtree(site, ignore_errors=True)
    contents.mkdir(parents=True)
    wheels.mkdir()
    gather(contents)
    wheel = build_wheel(wheels)
    command = [sys.executable, "-m", "jupyter", "lite", "build", "--contents", str(contents), "--output-dir", str(site)]
    command += ["--piplite-wheels", str(wheels / wheel), "--apps", "lab", "--no-sourcemaps"]
    run = subprocess.run(command, cwd=LITE, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"JupyterLite could not be built: {run.stdout}{run.stderr}")


def setup(app: Any) -> dict[str, bool]:
    app.connect("build-finished", build)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
