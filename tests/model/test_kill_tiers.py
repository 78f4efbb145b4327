"""A generation whose memory lies in tiers down to a disk is killed: what was saved is whole, and it goes on from there.

`make test-kill` kills 40 at any moment, among them 15 while rows move to and from the disk; `make test` kills two.
"""

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("safetensors")  # a model runs without it
if sys.platform == "win32":
    pytest.skip("no kill -9", allow_module_level=True)

from tests.killed_process import PROCESSES, ended, killed
from tests.model.killed_generation import Counted, content, go_on, go_on_until_killed, go_on_up_to_line

SEED = 27


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def lines_of(folder, device, part):
    with Counted(part) as counted:
        go_on(folder, device)
    return counted.lines


def counted_lines(folder, device, part, pipe):
    pipe.send(lines_of(folder, device, part))


def kills(folder, device, moving, saving, anywhere):
    """Kill as many generations; each goes on from its last save, if it has one, and ends with the same bits."""
    draw, moments, ends = random.Random(SEED), [], set()
    began = time.monotonic()
    for part, count in (("moving", moving), ("saving", saving)):
        whole = folder / part
        whole.mkdir()
        hears, tells = PROCESSES.Pipe(duplex=False)
        assert ended(counted_lines, whole, device, part, tells) == 0
        lines = hears.recv()
        moments += [(go_on_up_to_line, part, draw.randrange(1, lines + 1)) for _ in range(count)]
        ends.add(content(whole))
    seconds = (time.monotonic() - began) / 2
    moments += [(go_on_until_killed, draw.random() * seconds) for _ in range(anywhere)]
    assert len(ends) == 1
    had = 0
    for number, (how, *moment) in enumerate(moments):
        out = folder / str(number)
        out.mkdir()
        end = killed(*moment, how, out, device) if how is go_on_until_killed else ended(how, out, device, *moment)
        assert end == -signal.SIGKILL, (how.__name__, moment)
        left = {path.name for path in out.iterdir()}
        had += "a.state" in left
        assert all(name == "a.state" or name.startswith(".a.state.") for name in left), left
        assert ended(go_on, out, device) == 0
        assert {content(out)} == ends, (how.__name__, moment)
        assert [path.name for path in out.iterdir()] == ["a.state"]
    print(f"{len(moments)} generations killed, seed {SEED}: {moving} while rows moved, {saving} during a save")
    print(f"{had} of them had saved a state; all ended with the same bits")
    return had


def test_a_killed_generation_goes_on_to_the_same_bits(folder):
    kills(folder, "cpu", moving=1, saving=1, anywhere=0)


@pytest.mark.kill
def test_forty_killed_generations_go_on_to_the_same_bits(folder):
    assert kills(folder, "cpu", moving=15, saving=10, anywhere=15) > 20


@pytest.mark.gpu
def test_killed_generations_on_a_gpu_go_on_to_the_same_bits(folder):
    assert kills(folder, "gpu", moving=3, saving=2, anywhere=3) > 2
