"""Importing this hides every package but NumPy and Matplotlib, and what they and IPython need.

A browser offers no more (Pyodide), so ``run.py`` runs the notebooks that are offered there in this way.
"""

import sys
from importlib.machinery import ModuleSpec
from typing import Any

HIDDEN = frozenset(
    ("numba", "llvmlite", "scipy", "cupy", "cuda", "safetensors", "tqdm", "tyro", "threadpoolctl", "ipywidgets")
)


class WithoutHidden:
    """A finder of modules that finds the hidden ones nowhere."""

    def __init__(self, finder: Any):
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


loaded = HIDDEN & {name.partition(".")[0] for name in sys.modules}
if loaded:
    raise ImportError(f"nothing hidden may be imported before, got {', '.join(sorted(loaded))}")
sys.meta_path[:] = [WithoutHidden(finder) for finder in sys.meta_path]
