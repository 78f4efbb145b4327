"""The commands of README, CONTRIBUTING and docs: they exist, take these options, and find the files that they name.

A command is a line of an indented block or of a ```bash block, or `code` in a sentence. ``ramnet-np`` and the
benchmarks read a page's words as they read a user's, but what they would start then does not run. A file that a command
reads is in the repository, or a command above it on its page makes it, or the page asks its reader to bring it.
Of programs that are not ours, which may be missing here, the options are compared with those that their manuals list;
what one of them starts (``mpiexec``, ``srun``) is read as a command of its own.
The commands of docs/extending.md are for the library with that page's changes; tests/test_extending.py runs those.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import re
import shlex
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import tyro

from ramnet_np import cli
from ramnet_np.data.tokens import SUMS
from ramnet_np.model.checkpoint import hub_hint

ROOT = Path(__file__).parent.parent
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "models/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    if "_build" not in page.parts and page.name != "extending.md"
}
LAUNCHERS = {  # and their options, each with a value; then comes the command that they start
    "mpiexec": {"-n"},
    "srun": {"--ntasks", "--ntasks-per-node"},
    "ray symmetric-run": {"--address", "--min-nodes"},
}
TOOLS = {  # options, and the values that they take, or a word of what stands there
    "hf download": {"--local-dir": None},
    "sha256sum": {"-c": {SUMS}},
    "ncu": {
        "--set": {"basic", "detailed", "full", "none", "nvlink", "pmsampling", "roofline"},
        "--clock-control": {"base", "none"},
    },
    "compute-sanitizer": {"--tool": {"memcheck", "racecheck", "initcheck", "synccheck"}},
}
PROGRAMS = (
    "ramnet-np", "python", "make", "pip", "git", "cp", *(name.split()[0] for name in (*LAUNCHERS, *TOOLS)),
)  # fmt: skip
NO_COMMANDS = {  # lines of indented blocks that show something else
    "docs/guide/frameworks.md": ("use_in(model)",),
    "docs/results/mqar.md": ("position ", "shown ", "answer "),
    "docs/scaling.md": ("seconds of a step =", "export MASTER_ADDR=$(scontrol ", "head=$(scontrol "),
}
STANDS_FOR = {"S": "3", "NAME": "paper-340m", "/scratch": tempfile.gettempdir()}  # what is left to the reader
OUTPUTS = {"out", "json"}  # the options that name what a command makes; every other path is read
BROUGHT = {  # texts, models and results that a page asks its reader to have
    "README.md": {"tokens"},
    "docs/gpu-training.md": {"novels"},
    "docs/guide/experiments.md": {"tokens"},
    "docs/guide/sampling.md": {"runs/book", "letter.txt", "long.txt", "novel.txt"},
    "docs/guide/text.md": {"novels", "stories", "models/novels-20m"},
    "docs/hierarchical-memory.md": {"runs/book", "novels"},
    "docs/scaling.md": {"tokens"},
    "models/README.md": {"tokens"},
}


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class Command(NamedTuple):
    """One command of a page."""

    words: list[str]
    in_sentence: bool  # then it may be a name without its options


def commands_of(text: str) -> Iterator[Command]:
    """Every command of a page, in its order.

    >>> [command.words for command in commands_of("Try `make demo`:\\n\\n    ramnet-np demo --seed 3  # x")]
    [['make', 'demo'], ['ramnet-np', 'demo', '--seed', '3']]
    """
    text = re.sub(r"^```(?!bash)\w+\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    names = "|".join(PROGRAMS)
    line = rf"^(?: {{4}}|[A-Z_]+=\S+ )*(?P<line>(?:{names}) .*)$"
    for found in re.finditer(rf"{line}|`(?P<code>(?:{names}) [^`]+)`", text.replace("\\\n", " "), re.MULTILINE):
        words = shlex.split(found["line"] or found["code"], comments=True)
        if words[1:] and "{" not in words[1]:
            given = [STANDS_FOR.get(word, word) for word in words if word != "..."]
            yield Command(given, found["line"] is None)


def paths_in(options: Any) -> Iterator[tuple[str, Path]]:
    """The name and value of every path among options, a dataclass."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path):
                yield field.name, one
            elif dataclasses.is_dataclass(one):
                yield from paths_in(one)


class Page:
    """What the commands of a page, so far, have made."""

    def __init__(self, name: str):
        self.made = {Path(path) for path in BROUGHT.get(name, ())}
        self.steps: dict[Path, int] = {}  # of the runs, by their folder

    def take(self, options: Any) -> None:
        """Check what a command with these options reads, then add what it makes."""
        found = list(paths_in(options))
        for name, path in found:
            written = name in OUTPUTS or (name == "state" and not options.keep_state)
            if not written or (name == "out" and getattr(options, "resume", False)):
                self.read(path)
        self.made |= {path for name, path in found if name in OUTPUTS or name == "state"}
        for name, path in found:
            if name == "state":  # the next command may go on from it
                path.touch()

    def read(self, path: Path) -> None:
        """It must be there, unless it is a place-holder or a path of the reader's machine."""
        if path.is_absolute() or re.fullmatch("[A-Z]+", str(path)) or list(ROOT.glob(str(path))):
            return
        assert self.made & {path, *path.parents}, f"nothing above makes {path}"

    def run(self, options: Any, **_: Any) -> SimpleNamespace:
        """In place of everything that the command would start."""
        self.take(options)
        return SimpleNamespace(signal=None, in_words=lambda: "", finished=0, left=0, failed=0, results="", reports=())

    def train(self, run: Any, **_: Any) -> None:
        self.take(run)
        self.steps[run.out] = run.train.steps

    def experiment(self, names: list[str], options: Any) -> SimpleNamespace:
        out = options.out or Path("runs", "+".join(names))
        return self.run(dataclasses.replace(options, out=out))

    def plot(self, results: tuple[Path, ...], out: Path | None) -> str:
        for path in results:
            self.read(path)
        return ""

    def demo(self, out: Path, seed: int) -> SimpleNamespace:
        self.made.add(out)
        return SimpleNamespace(signal=None)

    def replace_what_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The command reads its options as ever; what it starts is a method of this page."""
        monkeypatch.setattr("ramnet_np.runs.demo.run_demo", self.demo)
        monkeypatch.setattr("ramnet_np.cli._on_ranks", lambda run, args, train: self.train(run))
        monkeypatch.setattr("ramnet_np.runs.tokenize.tokenize_folder", self.run)
        monkeypatch.setattr("ramnet_np.runs.evaluate.evaluate_text", self.run)
        monkeypatch.setattr("ramnet_np.runs.books.run_book_tests", lambda options: [self.run(options)])
        monkeypatch.setattr("ramnet_np.runs.generate.run_generate", lambda options: self.run(options).signal)
        monkeypatch.setattr("ramnet_np.experiment.runner.run_experiment", self.experiment)
        monkeypatch.setattr("ramnet_np.experiment.report.write_report", self.plot)
        monkeypatch.setattr("ramnet_np.kernels.bench.cpu.run_bench", self.run)
        monkeypatch.setattr("ramnet_np.gradcheck.cases.run_cases", lambda *options: [])
        monkeypatch.setattr("ramnet_np.gradcheck.cases.summary_table", lambda reports: "")


def check_ramnet_np(command: Command, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    args = command.words[1:]
    assert args[0] in cli.COMMANDS
    if command.in_sentence and len(args) == 1 and args[0] not in ("demo", "info", "bench"):
        return
    try:
        status = cli.main(args)
    except SystemExit as end:  # --help
        status = end.code
    assert not status, capsys.readouterr().err


def check_python(command: Command, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    if command.words[1] != "-m":
        script, *paths = command.words[1:]
        assert (ROOT / script).is_file()
        if not paths[0].startswith("-"):  # the first is read
            page.read(Path(paths[0]))
            page.made |= {Path(path) for path in paths[1:]}
    elif command.words[2].startswith("ramnet_np.kernels.bench."):
        module = importlib.import_module(command.words[2])
        if command.words[3:] or hasattr(module, "Options"):
            page.take(tyro.cli(module.Options, args=command.words[3:]))
    else:
        assert importlib.util.find_spec(command.words[2])
        assert all((ROOT / word).exists() for word in command.words if word.startswith("tests/"))
        if "-m" in (rest := command.words[3:]):
            asked = set(re.findall(r"\w+", rest[rest.index("-m") + 1])) - {"and", "or", "not"}
            assert asked <= {line.partition(":")[0] for line in settings()["tool"]["pytest"]["ini_options"]["markers"]}


def check_make(command: Command, *_: Any) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert command.words[1] in targets


def check_pip(command: Command, *_: Any) -> None:
    extras = settings()["project"]["optional-dependencies"]
    for package in command.words:
        if found := re.fullmatch(r"(?:\.|ramnet-np)\[(.*)\]", package):
            assert set(found[1].split(",")) <= set(extras)


def check_git(command: Command, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    if command.words[1] == "clone":
        page.made.add(Path(command.words[2].rpartition("/")[2]))


def check_cp(command: Command, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    page.read(Path(command.words[1]))
    page.made.add(Path(command.words[2]))


def check_launcher(command: Command, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own options, then what it starts."""
    name = next(name for name in LAUNCHERS if " ".join(command.words).startswith(f"{name} "))
    rest = command.words[len(name.split()) :]
    while rest[0].startswith("-") and rest[0] != "--":
        assert rest[0] in LAUNCHERS[name], f"{name} has no {rest[0]}"
        rest = rest[2:]
    check(Command(rest[rest[0] == "--" :], command.in_sentence), page, capsys)


def check_tool(command: Command, *_: Any) -> None:
    name = next(name for name in TOOLS if " ".join(command.words).startswith(f"{name} "))
    rest = command.words[len(name.split()) :]
    for option, value in itertools.pairwise(rest):
        if option.startswith("-"):
            assert option in TOOLS[name], f"{name} has no {option}"
            assert TOOLS[name][option] is None or value in TOOLS[name][option], f"{name} {option} takes no {value}"
    assert not rest[-1].startswith("-"), f"{rest[-1]} of {name} takes a value"


def check(command: Command, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    CHECKS[command.words[0]](command, page, capsys)


CHECKS = {
    "ramnet-np": check_ramnet_np,
    "python": check_python,
    "make": check_make,
    "pip": check_pip,
    "git": check_git,
    "cp": check_cp,
    **{name.split()[0]: check_launcher for name in LAUNCHERS},
    **{name.split()[0]: check_tool for name in TOOLS},
}


def test_the_commands_are_found():
    found = {name: [command.words[0] for command in commands_of(text)] for name, text in PAGES.items()}
    assert found["README.md"].count("ramnet-np") >= 12
    assert {word for words in found.values() for word in words} == set(CHECKS) - {"ray"}  # which srun starts
    assert sum(map(len, found.values())) > 130


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if list(commands_of(text))])
def test_commands_exist_and_find_what_they_read(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = Page(name)
    page.replace_what_runs(monkeypatch)
    for command in commands_of(PAGES[name]):
        try:
            check(command, page, capsys)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name}: {shlex.join(command.words)}: {error}") from error
    for folder, step in re.findall(r"(runs/[\w/-]+)/checkpoints/step-(\d{8})", PAGES[name]):
        assert page.steps[Path(folder)] == int(step), f"{name}: the last checkpoint of {folder}"


@pytest.mark.parametrize(
    "wrong",
    [
        "ramnet-np train mqar --model.ordr 3",
        "ramnet-np train mqar --model.mixer none-such",
        "ramnet-np lab",
        "ramnet-np train mqar --out runs/x --resume",
        "ramnet-np generate runs/x",
        "python -m ramnet_np.kernels.bench.vs_peers --backend cupy",
        "python docs/none.py docs/images",
        "make nothing",
        "pip install '.[cuda11]'",
        "python -m pytest tests/test_none.py",
        "python -m pytest -m slowest",
        "mpiexec -n 2 ramnet-np train mqar --model.ordr 3",
        "mpiexec -ranks 2 ramnet-np train mqar",
        "srun --ntasks 2 ray symmetric-run --min-nodes 2 -- ramnet-np lab",
        "srun ray symmetric-run --nodes 2 -- ramnet-np train mqar",
        "hf download ORG/MODEL --to FOLDER",
        "hf upload ORG/MODEL FOLDER",
        "sha256sum -c SHA512SUMS",
        "ncu --set every",
        "compute-sanitizer --tool",
    ],
)
def test_a_wrong_command_is_found(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PAGES, "page", f"    {wrong}\n")
    with pytest.raises(AssertionError, match=r"^page: "):
        test_commands_exist_and_find_what_they_read("page", tmp_path, monkeypatch, capsys)


def code_lines(text: str) -> Iterator[str]:
    """The lines of indented blocks and of ```bash blocks, whole, without comments.

    >>> list(code_lines("Text.\\n\\n    make x  # y\\n    # all\\n\\n```bash\\nls\\n```\\n\\n```text\\nno\\n```"))
    ['make x', 'ls']
    """
    within: str | None = None
    for line in re.sub(r"\\\n *", "", text).splitlines():
        if fence := re.match(r" *```(\w*)", line):
            within = fence[1] if within is None else None
        elif within == "bash" or (within is None and line.startswith("    ")):
            code = re.sub(r"(?:^| +)#.*", "", line.strip())
            if code:
                yield code


@pytest.mark.parametrize("name", PAGES)
def test_every_line_of_a_block_is_a_command_that_is_checked(name):
    begins = rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) "
    unknown = [line for line in code_lines(PAGES[name]) if not re.match(begins, line)]
    assert [line for line in unknown if not line.startswith(NO_COMMANDS.get(name, ("#",)))] == []


def test_errors_name_the_commands_of_the_pages():
    [hint] = commands_of(hub_hint("ORG/MODEL"))
    assert hint in commands_of(PAGES["docs/guide/checkpoints.md"])


def test_files_that_pages_name_exist():
    """`Code` with the path of a file in one of the repository's folders."""
    folder, ending = r"(?:ramnet_np|kernels|docs|tests|notebooks|\.ci|\.github)", r"(?:py|cuh?|md|toml|jsonl|yml|txt)"
    names = rf"`({folder}/[\w./-]+\.{ending})`"
    named = {(page, path) for page, text in PAGES.items() for path in re.findall(names, text)}
    assert len(named) >= 20
    assert not [(page, path) for page, path in sorted(named) if not (ROOT / path).exists()]
