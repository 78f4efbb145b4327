"""The benchmark of the GPU backend: what it prints and records. No test asserts a time."""

import json
import re

import pytest
import tyro
from ramnet_np.kernels.bench import few_rows, gpu_peers, gpu_shapes, tiers, vs_peers
from ramnet_np.kernels.bench.cpu import Shape


def test_floors_are_bytes_over_bandwidth():
    """A token and head: 2 U P logits, C values, C outputs; the backward reads the inputs and dy, writes gradients."""
    shape = Shape(2, 10, 3, 5, 4, 16)
    rows, forward, backward = 60, 40 + 16 + 16, 40 + 16 + 16 + 40 + 16
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
        expected = (1e3 * rows * forward * size / 1e9, 1e3 * rows * (forward + backward) * size / 1e9)
        assert gpu_shapes.floors(shape, dtype, 1e9) == pytest.approx(expected)


def test_a_line_holds_times_ratio_and_part_of_the_floor():
    row = {
        "shape": "MQAR", "implementation": "cupy", "dtype": "float32", "fwd": 0.1, "fwd+bwd": 0.2, "ratio": [11, 12],
        "graph fwd": 0.05, "graph fwd+bwd": 0.15, "MiB": 123.4,
    }  # fmt: skip
    line = vs_peers.format_row(row, (0.01, 0.02))
    assert " ".join(line.split()) == "MQAR cupy float32 0.100 0.200 11.00x 12.00x 0.050 0.150 10% 10% 123"
    assert len(line) == len(vs_peers.HEADER)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(vs_peers.Options, args=["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("floor / time", "pip install --pre ramnet-ops", "--shapes MQAR", "--kernels", "bfloat16"):
        assert word in text


def test_an_unknown_shape_ends_in_one_sentence():
    with pytest.raises(SystemExit, match=r"--shapes takes 'paper 340M', .* or 'none', got 'huge'"):
        vs_peers.main(vs_peers.Options(shapes=("huge",)))


@pytest.fixture
def tiny(monkeypatch):
    shapes = {"paper 340M": (Shape(2, 9, 2, 3, 4, 16), 8), "MQAR": (Shape(1, 5, 2, 3, 4, 8), 4)}
    monkeypatch.setattr(vs_peers, "SHAPES", shapes)
    monkeypatch.setattr(vs_peers, "STEP_BATCHES", (1, 2))
    monkeypatch.setattr(vs_peers, "copy_bandwidth", lambda: 1e9)
    monkeypatch.setattr(vs_peers, "find_authors", lambda: (None, "not here"))
    monkeypatch.setattr(vs_peers, "has_torch", lambda: False)


@pytest.mark.gpu
def test_every_shape_and_step_is_measured_and_recorded(tiny, tmp_path, capsys):
    out = tmp_path / "results.json"
    options = vs_peers.Options(tuple(vs_peers.SHAPES), dtype=("float32", "float16"), repeats=1, out=out)
    vs_peers.main(options)
    printed = capsys.readouterr().out
    assert "the authors' package is left out: not here" in printed
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    measured = [(row["shape"], row["dtype"]) for row in rows if row["implementation"] == "cupy"]
    assert measured == [(row["shape"], row["dtype"]) for row in rows if row["implementation"] == "numba-cuda"]
    assert measured == [
        (shape, dtype)
        for shapes in (("paper 340M", "MQAR"), ("one token, B 1", "one token, B 2"))
        for dtype in ("float32", "float16")
        for shape in shapes
    ]
    for row in rows:
        assert {"device", "versions", "bandwidth", "date", "command"} <= row.keys()
        times = (
            ("eager", "graph") if "token" in row["shape"] else ("fwd", "fwd+bwd", "graph fwd", "graph fwd+bwd", "MiB")
        )
        assert all(row[time] > 0 for time in times)


@pytest.mark.gpu
def test_peers_are_rows_of_their_own(tiny, monkeypatch):
    """With stand-ins for what is measured through torch."""
    peer = {"fwd": 4.0, "fwd+bwd": 8.0, "MiB": 1.0}
    monkeypatch.setattr(vs_peers, "has_torch", lambda: True)
    monkeypatch.setattr(vs_peers, "measure_authors", lambda *_: dict(peer))
    monkeypatch.setattr(vs_peers, "measure_attention", lambda *_: dict(peer))
    options = vs_peers.Options(repeats=1, backends=("cupy",))
    ours, authors, attention = vs_peers.measure_shape("paper 340M", "float32", object(), options)
    assert ours["ratio"] == [4 / ours["fwd"], 8 / ours["fwd+bwd"]]
    assert (authors["implementation"], authors["dtype"]) == ("authors", "float32")
    assert (attention["implementation"], attention["dtype"]) == ("attention", "bfloat16")
    assert len(vs_peers.measure_shape("MQAR", "float32", object(), options)) == 2
    assert gpu_peers.ATTENTION.keys() <= gpu_shapes.SHAPES.keys()


@pytest.mark.gpu
def test_a_wrong_result_is_not_timed(tiny, monkeypatch):
    monkeypatch.setattr(vs_peers, "GAMMA", 1.0)
    monkeypatch.setitem(vs_peers.TOLERANCE, "float32", 0.0)
    with pytest.raises(
        RuntimeError, match=r"y of B2-T9-H2-U3-P4-C16, float32, cupy is off by .* no times are reported"
    ):
        vs_peers.measure_shape("paper 340M", "float32", None, vs_peers.Options(repeats=1))


@pytest.mark.gpu
def test_the_peak_is_what_is_in_use_at_once():
    """Two arrays of which one is gone before the other comes, beside one that was there."""
    import cupy
    from ramnet_np.kernels.bench.gpu_timing import give_back_memory, peak_mib

    give_back_memory()
    before = cupy.get_default_memory_pool().used_bytes() / 2**20
    held = cupy.zeros(2**20, "u1")

    def call():
        first = cupy.zeros(3 * 2**20, "u1")
        del first
        return cupy.zeros(2 * 2**20, "u1")

    assert peak_mib(call) - before == 4
    assert held.size


@pytest.mark.gpu
def test_kernels_are_listed_once_each_and_launches_left_as_they_were(tiny, capsys):
    from ramnet_np.kernels.cuda.runtime import module

    launch = module.Launch.__call__
    vs_peers.main(vs_peers.Options(shapes=("MQAR",), kernels=True))
    assert module.Launch.__call__ is launch
    cupy, numba = capsys.readouterr().out.splitlines()[-2:]
    masses = {cupy: ("mass_forward", "mass_backward"), numba: ("mass_scan", "mass_backward_scan")}
    for line, of_masses in masses.items():
        for kernel in ("decode_forward", "content_forward", *of_masses, "decode_backward"):
            assert f" {line}".count(f" {kernel} ") == 1
        assert " total " in line


@pytest.mark.gpu
def test_products_of_a_few_rows_are_printed_beside_cublas_and_the_floor(monkeypatch, capsys):
    monkeypatch.setattr(few_rows, "BEYOND_CACHE", 2**22)
    few_rows.main(few_rows.Options(preset="text-small", rows=(1, 16)))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["addresses", "out", "gate", "down", "head", "all"] * 2
    assert all(float(figure) > 0 for line in lines[2:] for figure in line.split()[-3:-1])  # the floor rounds to 0
    few_rows.main(few_rows.Options(preset="text-small", rows=(20,), shapes=3))
    ranks = [line for line in capsys.readouterr().out.splitlines() if "by rank of the shape" in line]
    assert [len(set(re.findall(r"\(\d+ x \d\)", line))) for line in ranks] == [3] * 4


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [None, "bfloat16"])
def test_the_memory_in_tiers_is_timed_beside_the_dense_one(capsys, rows, tmp_path):
    shares, disk = ("dense", "1", "0.5", "0", "dictionary", "half on disk"), {"rows": rows, "disk": tmp_path}
    tiers.main(tiers.Options(("memory", "space"), (1.0, 0.5, 0.0), layers=2, heads=16, order=5, tokens=4, **disk))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[2] for line in lines[1:-1]] == [f"share {share}" for share in shares]
    assert all("times dense" in line for line in lines[1:-1])
    assert "written" in lines[-1]
