"""The tests with the oldest and the newest of everything, in fresh environments: ``make test-versions``.

    python -m tests.versions                                # all three environments, with the Pythons of this machine
    python -m tests.versions newest --python python3.13     # one of them, with the Python given

| environment | Python | packages | what is installed | tests |
| --- | --- | --- | --- | --- |
| oldest | the oldest found | those of tests/oldest.txt | the unpacked sdist, in place | ``MOST`` |
| newest | the newest found | the newest that there are | the wheel | ``MOST`` |
| alone | the newest found | NumPy, and nothing else that the wheel asks for | the wheel | ``ALONE`` |

A Python is found on PATH and among those of pyenv, if it is one of the versions that pyproject.toml names.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALONE = ("tests/core", "tests/layers", "tests/model")
MOST = (*ALONE, "tests/data", "tests/plot", "tests/kernels/test_cpu_agreement.py", "tests/test_cli.py")
TESTERS = ("pytest", "pytest-xdist", "hypothesis")
PACKAGES = ("numpy", "scipy", "numba", "matplotlib", "tqdm", "safetensors", "tyro", "threadpoolctl")

Version = tuple[int, ...]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("environments", nargs="*", metavar="environment", help="oldest, newest, alone; all by default")
    parser.add_argument("--python", help="the interpreter to use, instead of the oldest and the newest found")
    options = parser.parse_args(arguments)
    chosen = options.environments or list(ENVIRONMENTS)
    if unknown := set(chosen) - ENVIRONMENTS.keys():
        parser.error(f"an environment must be one of {', '.join(ENVIRONMENTS)}, got {', '.join(sorted(unknown))}")
    found = dict(pythons())
    oldest, newest = (options.python, options.python) if options.python else (found[min(found)], found[max(found)])
    with tempfile.TemporaryDirectory() as folder:
        sdist, wheel = build(Path(folder))
        with ThreadPoolExecutor() as installers:  # the first tests run while the others' packages are installed
            made = {}
            for name in chosen:
                python = oldest if name == "oldest" else newest
                made[name] = installers.submit(ENVIRONMENTS[name], Path(folder, name), python, sdist, wheel)
            for name, environment_made in made.items():
                run_tests(name, *environment_made.result())


def pythons() -> Iterator[tuple[Version, str]]:
    """Version and path of every interpreter of this machine that pyproject.toml names and that runs."""
    named = named_versions()
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += Path.home().glob(".pyenv/versions/*/bin")
    for path in sorted({path for folder in folders for path in folder.glob("python3.*")}):
        if re.fullmatch(r"python3\.\d+", path.name) and path.name.removeprefix("python") in named:
            ask = [str(path), "-c", "import sys, ssl, venv; print(*sys.version_info[:3])"]
            answer = subprocess.run(ask, capture_output=True, text=True)
            if answer.returncode == 0:  # a shim of pyenv answers only for the versions that it was told
                yield tuple(map(int, answer.stdout.split())), str(path)


def named_versions() -> set[str]:
    """``{"3.11", ...}``, from the classifiers of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)}


def build(folder: Path) -> tuple[Path, Path]:
    """The unpacked sdist, and the wheel, which is built from it."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", ROOT]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz"), wheel


Made = tuple[Path, Path, tuple[str, ...]]  # the interpreter of an environment, the folder to start it in, its tests


def make_oldest(folder: Path, python: str, sdist: Path, wheel: Path) -> Made:
    bin_python = environment(folder, python, "--constraint", sdist / "tests" / "oldest.txt", "--editable", sdist)
    return bin_python, sdist, MOST


def make_newest(folder: Path, python: str, sdist: Path, wheel: Path) -> Made:
    return environment(folder, python, wheel), tests_alone(folder, sdist), MOST


def make_alone(folder: Path, python: str, sdist: Path, wheel: Path) -> Made:
    bin_python = environment(folder, python, "numpy")
    pip_install(bin_python, "--no-deps", wheel)
    return bin_python, tests_alone(folder, sdist), ALONE


ENVIRONMENTS = {"oldest": make_oldest, "newest": make_newest, "alone": make_alone}


def environment(folder: Path, python: str, *requirements: str | Path) -> Path:
    """A fresh environment with these requirements and what runs tests; returns its interpreter."""
    run([python, "-m", "venv", "--without-pip", folder / "venv"])
    bin_python = folder / "venv" / "bin" / "python"
    pip_install(bin_python, *TESTERS, *requirements)
    return bin_python


def pip_install(bin_python: Path, *requirements: str | Path) -> None:
    run([sys.executable, "-m", "pip", "--python", bin_python, "install", "-qq", *requirements])


def tests_alone(folder: Path, sdist: Path) -> Path:
    """The tests without the sources beside them, which Python would import in place of what is installed."""
    shutil.copytree(sdist / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(sdist / "pyproject.toml", folder)
    return folder


def run_tests(name: str, bin_python: Path, folder: Path, tests: tuple[str, ...]) -> None:
    code = "import sys\nfrom importlib.metadata import distributions\nprint('Python', sys.version.split()[0], end='')\n"
    code += f"found = {{d.name: d.version for d in distributions()}}\nfor name in {PACKAGES}:\n"
    code += "    print(',', name, found.get(name, 'none'), end='')\n"
    versions = subprocess.run([bin_python, "-c", code], check=True, capture_output=True, text=True).stdout
    print(f"\n{name}: {versions}", flush=True)
    run(
        [bin_python, "-m", "pytest", "-n", "logical", "--maxprocesses", "8", "-m", "not gpu and not site", *tests],
        cwd=folder,
        NUMBA_OPT="1",  # compiling takes longer than running
    )


def run(command: list[str | Path], cwd: Path | None = None, **settings: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment | settings)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}")


if __name__ == "__main__":
    main()
