"""A grid on a Ray cluster, here one of two CPUs."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ramnet_np.cli import main
from ramnet_np.experiment.ray_pool import RayPool
from ramnet_np.experiment.runner import Options

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'ramnet-np[ray]'")
def test_a_cluster_has_the_results_of_one_host_and_faults_are_told(tmp_path):
    command = [sys.executable, "-m", "tests.experiment.ray_case", str(tmp_path)]
    environment = os.environ | {"RAY_ADDRESS": "local"}  # never a cluster that this host is part of
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_wrong_options():
    with pytest.raises(ValueError, match=r"ray must have one address or none, and no gpus beside it, got gpus \[0\]"):
        Options(device="gpu", gpus=(0,), ray=())
    with pytest.raises(ValueError, match="got 2 addresses"):
        Options(ray=("a", "b"))


def test_without_ray_it_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["experiment", "mqar-order", "--quick", "--ray", "--out", str(tmp_path)]) == 2
    assert "runs on a Ray cluster need Ray: pip install 'ramnet-np[ray]'" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="need Ray"), RayPool("ray-head:6379", "gpu", 1, tmp_path, "now"):
        pass
