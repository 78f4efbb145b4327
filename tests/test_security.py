"""The promises of docs/security.md: no file of a user is unpickled or run as code, and nothing is downloaded."""

import ast

import pytest

from tests.test_rooms import imports, sources

PACKAGE = "ramnet_np."
# module -> the files that may import it, each for the reason that docs/security.md gives
BENCHES = ("generation", "language_model", "scaling")
ALLOWED = {
    "pickle": {"kernels.cpu.cache"},
    "socket": {"train.folder", "train.nccl_ranks", "runs.launch", "runs.watch"},
    "subprocess": {"runs.launch", "runs.watch", *(f"kernels.bench.{n}" for n in BENCHES)},
    "multiprocessing": {"experiment.workers"},
    "ray": {"experiment.ray_pool"},
}
NEVER = {
    "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "code", "codeop",
    "urllib", "http", "ftplib", "smtplib", "xmlrpc", "ssl", "requests", "httpx", "aiohttp", "huggingface_hub",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "np.load", "numpy.load", "xp.load", "cupy.load", "torch.load", "os.system", "os.popen",
    "importlib.util.spec_from_file_location",
}  # fmt: skip


def unsafe(files: dict[str, str]) -> list[str]:
    """Imports that are not allowed, and calls that run text or unpickle a file."""
    found = []
    for one in imports(files):
        library = one.target.split(".")[0]
        allowed = ALLOWED.get(library, set())
        if library in ALLOWED.keys() | NEVER and one.importer.removeprefix(PACKAGE) not in allowed:
            found.append(f"{one.importer} imports {one.target}")
    for module, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Name) and node.id in BUILTINS:
                found.append(f"{module} uses {node.id}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in METHODS:
                found.append(f"{module} uses {ast.unparse(node)}")
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell", "trust_remote_code"):
                found.append(f"{module} passes {node.arg}")
    return found


def test_the_package_keeps_its_promises():
    assert unsafe(sources()) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("core.memory", "import pickle"),
        ("model.checkpoint", "def f():\n    from urllib.request import urlopen"),
        ("model.checkpoint", "from huggingface_hub import snapshot_download"),
        ("train.loop", "import socket"),
        ("train.checkpoint", "import numpy as np\nnp.load('a.npy')"),
        ("data.text", "eval('1')"),
        ("data.text", "run = exec"),
        ("data.corpus", "open_it(allow_pickle=True)"),
        ("runs.launch", "start('ls', shell=True)"),
        ("kernels.cuda.runtime.module", "import marshal"),
    ],
)
def test_a_planted_break_is_seen(module, text):
    module = PACKAGE + module
    [complaint] = unsafe(sources() | {module: f"{sources()[module]}\n{text}\n"})
    assert complaint.startswith(module)


def test_every_exception_is_in_use():
    used = {(one.target.split(".")[0], one.importer.removeprefix(PACKAGE)) for one in imports(sources())}
    assert used >= {(library, module) for library, modules in ALLOWED.items() for module in modules}
