"""The folder of novels that docs/results/language.md trains and measures on.

    git clone https://github.com/computationalstylistics/100_english_novels
    python docs/novels.py 100_english_novels novels

Copies the 84 novels of docs/results/novels.sha256 from wherever they lie in the first folder to novels/train and
novels/valid, and checks every byte of them.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

SUMS = Path(__file__).parent / "results/novels.sha256"


def copy_novels(source: Path, out: Path, sums: Path = SUMS) -> int:
    """Copy what ``sums`` lists, in the format of sha256sum; returns how many files.

    FileNotFoundError or ValueError for one that is missing or another; then nothing is written.
    """
    texts: dict[str, bytes] = {}
    found = {path.name: path for path in source.rglob("*.txt")}
    for line in sums.read_text(encoding="utf-8").splitlines():
        sha256, _, name = line.partition("  ")
        path = found.get(Path(name).name)
        if path is None:
            raise FileNotFoundError(f"source must hold {Path(name).name}, but {str(source)!r} has no such file")
        texts[name] = path.read_bytes()
        if hashlib.sha256(texts[name]).hexdigest() != sha256:
            raise ValueError(f"{str(path)!r} must be the file that docs/results/novels.sha256 lists, got another text")
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(text)
    return len(texts)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python docs/novels.py SOURCE OUT")
    try:
        print(f"{copy_novels(Path(sys.argv[1]), Path(sys.argv[2]))} novels in {sys.argv[2]}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"novels.py: {error}") from error
