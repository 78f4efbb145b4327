"""Compiled kernels on disk: loaded by the next process, compiled anew where a file is old or damaged or cannot be."""

import hashlib
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ramnet_np.kernels.cpu import cache

MODULE = """
import sys
import numpy as np
from ramnet_np.kernels.cpu.compiling import kernel

@kernel
def twice(x):
    x[0] = 2 * x[0]

x = np.ones(1)
twice(x)
print(x[0], twice._cache.cache_path)
"""
WORD = "compiling kernels for the CPU, 10 to 15 s, once\n"


def runner(folder):
    """Runs the module in a process, in that folder; returns (what it prints, what it says on stderr)."""
    (folder / "twice.py").write_text(MODULE, encoding="utf-8")

    def run(before="", **environment):
        command = [sys.executable, "-c", f"{before}\nimport sys; sys.path.insert(0, {str(folder)!r}); import twice"]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache")} | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=folder)
        return done.stdout, done.stderr

    run.files = lambda: list((folder / "cache").rglob("*.kernel*"))
    return run


@pytest.fixture
def run(tmp_path):
    return runner(tmp_path)


@pytest.fixture(scope="module")
def run_again(tmp_path_factory):
    """One that has run, and whose folder several tests share: each leaves a good file there."""
    run = runner(tmp_path_factory.mktemp("again"))
    run()
    return run


def test_a_kernel_is_compiled_once_with_a_word(run):
    printed, said = run()
    assert printed.startswith("2.0 ")
    assert said == WORD
    [file] = run.files()
    made = file.stat().st_mtime_ns
    assert run() == (printed, "")
    assert file.stat().st_mtime_ns == made
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_word_can_be_silenced(run):
    assert run("import logging; logging.getLogger('ramnet_np').setLevel(logging.ERROR)")[1] == ""


class Clock:
    """What the cache takes for the time, and the words that it says."""

    def __init__(self, monkeypatch):
        self.now, self.said = 0.0, []
        monkeypatch.setattr(cache, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(cache, "_last_compilation", -cache._PAUSE)
        monkeypatch.setattr(cache, "_log", SimpleNamespace(warning=lambda text, *words: self.said.append(text % words)))

    def looks_for_a_kernel(self, cached):
        cached.load_overload("types", SimpleNamespace(refresh=lambda: None, codegen=codegen))
        return len(self.said)


def codegen():
    return SimpleNamespace(magic_tuple=lambda: ("a machine",))


def test_the_word_is_said_again_where_nothing_was_compiled_for_a_while(monkeypatch, tmp_path):
    """Ten seconds after the last kernel, not after the first: a call may compile many. A machine may just be up."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    clock, cached = Clock(monkeypatch), cache.KernelCache(umask)
    compiled = SimpleNamespace(library=SimpleNamespace(has_dynamic_globals=True))
    for now, words in ((0, 1), (4, 1), (13, 1), (22.5, 1), (32.5, 2)):
        clock.now = now
        assert clock.looks_for_a_kernel(cached) == words, now
        cached.save_overload("types", compiled)
    assert f"{clock.said[0]}\n" == WORD


def test_a_kernel_of_addresses_that_hold_in_one_process_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "_FOLDERS", (SimpleNamespace(
        from_function=lambda function, file: SimpleNamespace(get_cache_path=lambda: str(tmp_path))
    ),))  # fmt: skip
    kept = []
    for dynamic in (True, False):
        library = SimpleNamespace(has_dynamic_globals=dynamic, codegen=codegen())
        cached = cache.KernelCache(umask)
        cached.save_overload("types", SimpleNamespace(library=library, _reduce=lambda: ()))
        kept.append([file.name.rpartition("-")[0] for file in tmp_path.iterdir()])
    assert kept == [[], [f"test_cpu_cache.umask-{sys.implementation.cache_tag}"]]


@pytest.mark.parametrize(("version", "refused"), [("0.67.9", True), ("0.68.0", False), ("0.69.0dev0+4.g1", False)])
def test_a_numba_that_would_end_the_process_is_refused(version, refused):
    code = f"import numba; numba.__version__ = {version!r}; import ramnet_np.kernels.cpu.cache"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == refused, done.stderr
    if refused:
        assert done.stderr.strip().splitlines()[-1] == (
            "ImportError: Numba is 0.67.9, 0.68 or later is needed (pip install --upgrade numba)"
        )


def with_digest(content):
    return hashlib.sha256(content).digest() + content


def one_bit_flipped(good):
    """In the midst of the machine code."""
    return good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]


MOVED = pickle.dumps((cache.source_stamp(), b"cramnet_np.contract\nNoSuchType\n."))
OTHER = pickle.dumps((b"other sources", b"cos\nabort\n(tR."))  # of another version: its content is not looked at
NO_GOOD = {
    "empty": lambda good: b"",
    "no-pickle": lambda good: with_digest(b"no pickle"),
    "one-bit": one_bit_flipped,
    "moved-type": lambda good: with_digest(MOVED),
    "other-sources": lambda good: with_digest(OTHER),
}


@pytest.mark.parametrize("damage", NO_GOOD)
def test_a_file_that_is_no_good_is_written_anew(run_again, damage):
    run = run_again
    [file] = run.files()
    good = file.stat().st_size
    file.write_bytes(NO_GOOD[damage](file.read_bytes()))
    printed, said = run()
    assert printed.startswith("2.0 ")
    assert said == WORD
    assert [file.stat().st_size for file in run.files()] == [good]
    assert run()[1] == ""


def test_the_stamp_covers_every_source(monkeypatch, tmp_path):
    """A kernel compiles functions of other files into itself: all of them count, and what they import."""
    folders = {cache.__package__: tmp_path / "cpu", "ramnet_np": tmp_path / "library"}
    for folder, names in zip(folders.values(), (["mass.py", "slots.py"], ["contract.py", "cli.py"]), strict=True):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("old", encoding="utf-8")
    monkeypatch.setattr(cache.importlib.resources, "files", folders.__getitem__)
    stamp = cache.source_stamp.__wrapped__
    stamps = {stamp()}
    for name, counts in (("cpu/mass.py", 1), ("cpu/slots.py", 1), ("library/contract.py", 1), ("library/cli.py", 0)):
        (tmp_path / name).write_text("new", encoding="utf-8")
        before = len(stamps)
        stamps.add(stamp())
        assert len(stamps) == before + counts, name


def test_without_a_folder_to_write_to_kernels_are_compiled_in_every_process(run, tmp_path):
    """Neither the folder asked for, nor one beside the module, nor one in the home."""
    (tmp_path / "__pycache__").write_text("no folder", encoding="utf-8")
    nowhere = str(tmp_path / "__pycache__" / "below")
    environment = {"NUMBA_CACHE_DIR": nowhere, "HOME": nowhere, "XDG_CACHE_HOME": nowhere, "LOCALAPPDATA": nowhere}
    for _ in range(2):
        printed, said = run(**environment)
        assert printed == "2.0 None\n"
        assert said == WORD.replace(
            "once", "in every process: no folder to keep them in can be written to (NUMBA_CACHE_DIR)"
        )


def test_a_full_disk_is_no_error(run):
    """Writing fails after the folder was found; nothing half-written is left."""
    full = """
from pathlib import Path
def write_bytes(self, content, write=Path.write_bytes):
    write(self, content[:10])
    raise OSError(28, "No space left on device")
Path.write_bytes = write_bytes
"""
    assert run(full)[0].startswith("2.0 ")
    assert run.files() == []


def test_a_kernel_that_numba_cannot_copy_is_no_error(run):
    """As after a Ctrl-C within the callback by which LLVM hands over its code."""
    lost = """
from numba.core.codegen import CodeLibrary
def _get_compiled_object(self):
    raise RuntimeError("no compiled object yet")
CodeLibrary._get_compiled_object = _get_compiled_object
"""
    assert run(lost)[0].startswith("2.0 ")
    assert run.files() == []


def test_a_forward_alone_compiles_no_backward():
    code = """
import numpy as np
from ramnet_np import ram_attention_forward
from ramnet_np.kernels.cpu import content, decode, mass
x = np.zeros((1, 3, 1, 2, 4))
ram_attention_forward(x, x, np.ones((1, 3, 1, 2)), top_k=2, backend="numba")
kernels = content.content_forward, content.store, mass.mass_forward, decode._decode_singly
others = content.content_backward, mass.mass_backward, decode._decode_tiles_backward, decode._decode_by_lanes
print([len(kernel.compiled.signatures) for kernel in kernels + others])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1, 1, 1, 1, 0, 0, 0, 0]\n"


def test_the_list_of_backends_names_what_keeps_kernels_from_being_kept(tmp_path):
    environment = {"NUMBA_CACHE_DIR": "", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    ask = "from ramnet_np import backends; print(backends()['numba'])"
    printed = [
        subprocess.run(
            [sys.executable, "-c", f"{before}; {ask}"], env=os.environ | environment, capture_output=True, text=True,
            check=True,
        ).stdout.strip()
        for before in ("pass", UNWRITABLE)
    ]  # fmt: skip
    reason = "no folder to keep them in can be written to (NUMBA_CACHE_DIR)"
    assert printed == ["available", f"available, kernels are compiled in every process: {reason}"]


# what a locator answers where its folder cannot be written to: a test that runs as root can write everywhere
UNWRITABLE = (
    "from numba.core import caching; "
    "names = ['UserProvidedCacheLocator', 'InTreeCacheLocator', 'UserWideCacheLocator']; "
    "[setattr(getattr(caching, n), 'from_function', classmethod(lambda cls, f, file: None)) for n in names]"
)
