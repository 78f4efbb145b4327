"""A file is whole or as it was before, with the mode that it should have; JSON that is none is named."""

import os
import re
import resource
import signal
import stat
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("safetensors")  # a model runs without it
from safetensors.numpy import load_file, save_file

from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.files import WriteError, read_json, replacing, write_text


@contextmanager
def file_size_limit(size):
    """No file may grow past ``size`` bytes within the block: what a full disk does, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_a_new_file_has_the_umasks_mode_and_an_old_one_keeps_its_own(tmp_path, umask):
    model = RAMNet(RAMNetConfig(vocab=8, width=4, layers=1, order=2, radix=2, top_k=2))
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path)
        assert {path.name: mode_of(path) for path in tmp_path.iterdir()} == {
            "model.safetensors": 0o666 & ~umask, "config.json": 0o666 & ~umask,
        }  # fmt: skip
        for mode in (0o664, 0o600):
            (tmp_path / "model.safetensors").chmod(mode)
            model.save_pretrained(tmp_path)
            assert mode_of(tmp_path / "model.safetensors") == mode
    finally:
        os.umask(before)


def test_the_mode_is_that_of_any_new_file(tmp_path):
    """safetensors gives its files the mode 0600."""
    with replacing(tmp_path / "a.safetensors") as (partial,):
        save_file({"x": np.zeros(3)}, partial)
    (tmp_path / "b").touch()
    assert mode_of(tmp_path / "a.safetensors") == mode_of(tmp_path / "b")


def write_both(folder):
    with replacing(folder / "a.txt", folder / "x.safetensors") as (text, tensors):
        text.write_text("new")
        save_file({"x": np.zeros(1000)}, tensors)


def test_a_full_disk_leaves_the_old_files_and_no_part_of_new_ones(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    save_file({"x": np.ones(2)}, tmp_path / "x.safetensors")
    with file_size_limit(1000):
        with pytest.raises(WriteError, match=r"^'.*a\.txt' could not be written: File too large$"):
            write_text(tmp_path / "a.txt", "new" * 1000)
        with pytest.raises(WriteError, match=r"a\.txt' and '.*x\.safetensors' could not be written: .*File too large"):
            write_both(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "old"
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["x"], [1, 1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "x.safetensors"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        with pytest.raises(WriteError, match=f"^{str(path)!r} could not be written: it is no ordinary file$"):
            write_text(path, "new")
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux which file is flushed")
def test_what_is_renamed_is_on_the_disk(tmp_path, monkeypatch):
    """The file is flushed before it gets its name, and the name after it."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: (done.append(os.readlink(f"/proc/self/fd/{n}")), fsync(n)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    write_text(tmp_path / "a.txt", "all")
    written, *rest = done
    assert re.fullmatch(re.escape(str(tmp_path)) + r"/\.a\.txt\.[0-9a-f]{8}\.partial/a\.txt", written)
    assert rest == ["rename", str(tmp_path)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is damaged or not JSON: it is nested too deeply"),
        (b'{"best": NaN}', "is damaged or not JSON: it holds NaN"),
        (b'{"best": -Infinity}', "is damaged or not JSON: it holds -Infinity"),
        (b'{"a": {"step": 3, "step": 4}}', "is damaged or not JSON: it names 'step' twice"),
        (b'{"best": "\xff"}', "is damaged or not JSON: 'utf-8' codec can't decode"),
        (b'{"best": ', "is damaged or not JSON: Expecting value"),
        (b"9" * 5000, "is damaged or not JSON: Exceeds the limit"),
        (b"", "is damaged or not JSON"),
    ],
)
def test_json_that_is_none(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json' {message}"):
        read_json(tmp_path / "a.json")
