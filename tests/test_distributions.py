"""The wheel and the sdist hold what they should; what repeats pyproject.toml elsewhere repeats it rightly.

``python -m tests.versions`` installs both into fresh environments and runs the tests there.
"""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DEPENDENCIES = [Requirement(line) for line in PROJECT["dependencies"]]
VERSION = PROJECT["version"]
OURS = {"PKG-INFO", "setup.cfg", "ramnet_np.egg-info"}  # what setuptools writes into an sdist
AS_CONDA = {"matplotlib": "matplotlib-base"}  # without a window toolkit

LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.14"}
BROWSER = {"sys_platform": "emscripten", "platform_machine": "wasm32", "python_version": "3.14"}
MAC = {"sys_platform": "darwin", "platform_machine": "arm64", "python_version": "3.14"}
INTEL_MAC = {"sys_platform": "darwin", "platform_machine": "x86_64", "python_version": "3.13"}


def files(root: Path) -> dict[str, bytes]:
    """Path -> content of every file that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return {name: (root / name).read_bytes() for name in names if (root / name).is_file()}


@pytest.fixture(scope="module")
def tree():
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of the repository, so there is nothing to compare with")
    return files(ROOT)


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    """The folder with both distributions, built from a clean copy, and what was printed."""
    folder = tmp_path_factory.mktemp("distributions")
    for name, content in tree.items():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "tree"]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # it warns
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings)
    assert done.returncode == 0, done.stdout
    return folder / "dist", done.stdout


def test_the_build_has_no_warning(built):
    _, printed = built
    assert [line for line in printed.splitlines() if re.search("warn|deprecat", line, re.IGNORECASE)] == []


def test_the_sdist_is_the_repository_without_trained_models(tree, built):
    found = {}
    with tarfile.open(next(built[0].glob("*.tar.gz"))) as sdist:
        for member in sdist.getmembers():
            top, _, name = member.name.partition("/")
            assert top == f"ramnet_np-{VERSION}"
            if member.isfile() and name.split("/")[0] not in OURS:
                found[name] = sdist.extractfile(member).read()
    kept = {name: content for name, content in tree.items() if not re.match("models/.*/", name)}
    assert "models/README.md" in kept
    assert found.keys() == kept.keys()
    assert [name for name in kept if found[name] != kept[name]] == []


def test_the_wheel_is_the_library_and_its_kernels(tree, built):
    with zipfile.ZipFile(next(built[0].glob("*.whl"))) as wheel:
        found = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    library = {name: content for name, content in tree.items() if name.startswith("ramnet_np/")}
    kernels = {f"ramnet_np/{name}": content for name, content in tree.items() if name.startswith("kernels/")}
    assert {Path(name).suffix for name in library | kernels} == {".py", ".typed", ".toml", ".cu", ".cuh"}
    assert found == library | kernels


def test_the_metadata_is_valid_and_complete(built):
    with zipfile.ZipFile(next(built[0].glob("*.whl"))) as wheel:
        info = f"ramnet_np-{VERSION}.dist-info"
        metadata = Metadata.from_email(wheel.read(f"{info}/METADATA"), validate=True)
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
        assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert (metadata.name, str(metadata.version), metadata.license_expression) == ("ramnet-np", VERSION, "MIT")
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.description_content_type == "text/markdown"
    assert "ramnet-np = ramnet_np.cli:main" in entry_points


@pytest.mark.parametrize(
    ("platform", "numba"),
    [(LINUX, [">=0.68"]), (MAC, [">=0.68"]), (BROWSER, []), (INTEL_MAC, [])],
)
def test_numba_is_asked_for_where_it_exists(platform, numba):
    asked = [one for one in DEPENDENCIES if one.marker is None or one.marker.evaluate(platform)]
    assert [str(one.specifier) for one in asked if one.name == "numba"] == numba
    assert {one.name for one in asked} | {"numba"} == {one.name for one in DEPENDENCIES}


def test_the_oldest_versions_are_the_lower_bounds():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "tests/oldest.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert pins.keys() == {one.name for one in DEPENDENCIES}
    for one in DEPENDENCIES:
        [lower] = [bound.version for bound in one.specifier if bound.operator == ">="]
        assert pins[one.name] in (lower, f"{lower}.0"), one


def test_the_conda_recipe_asks_for_the_same():
    text = (ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8").replace("${{ python_min }}", "3.11")
    recipe = yaml.safe_load(text)
    assert recipe["context"] == {"version": VERSION, "python_min": PROJECT["requires-python"].removeprefix(">=")}
    run = {Requirement(line) for line in recipe["requirements"]["run"]}
    named = {
        AS_CONDA.get(one.name, one.name): str(one.specifier) for one in DEPENDENCIES if "<" not in str(one.specifier)
    }
    assert {one.name: str(one.specifier) for one in run} == named | {"python": PROJECT["requires-python"]}
    assert recipe["requirements"]["host"][2] == "setuptools >=77"
    assert PYPROJECT["build-system"]["requires"] == ["setuptools>=77"]
    assert recipe["about"]["summary"] == PROJECT["description"]


def test_every_place_names_the_same_version():
    import ramnet_np

    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    [newest, *_] = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest == VERSION
    assert ramnet_np.__version__ == VERSION


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_run_the_commands_of_contributing(workflow):
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert commands
    named = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [command for command in commands if " ".join(command.split()[:2]) not in named] == []
