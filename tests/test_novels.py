"""The folder of novels of the page on language: copied by a list of checksums, or not at all."""

import hashlib
import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs/novels.py"
SPEC = importlib.util.spec_from_file_location("novels", SCRIPT)
novels = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(novels)


def test_novels_are_copied_where_all_are_right(tmp_path):
    source, out, sums = tmp_path / "clone", tmp_path / "novels", tmp_path / "sums"
    (source / "corpus").mkdir(parents=True)
    texts = {"train/a.txt": b"one\r\n", "valid/b.txt": b"two\r\n"}
    lines = [f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in texts.items()]
    sums.write_text("".join(lines))
    (source / "corpus" / "a.txt").write_bytes(texts["train/a.txt"])
    with pytest.raises(FileNotFoundError, match=r"source must hold b.txt"):
        novels.copy_novels(source, out, sums)
    (source / "corpus" / "b.txt").write_bytes(b"two\n")
    with pytest.raises(ValueError, match=r"got another text"):
        novels.copy_novels(source, out, sums)
    assert not out.exists()
    (source / "corpus" / "b.txt").write_bytes(texts["valid/b.txt"])
    assert novels.copy_novels(source, out, sums) == 2
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.txt")} == texts


def test_the_list_has_nine_novels_to_measure_on():
    names = [line.split()[1] for line in novels.SUMS.read_text(encoding="utf-8").splitlines()]
    assert (len(names), sum(name.startswith("valid/") for name in names)) == (84, 9)
    assert len({Path(name).name for name in names}) == 84
