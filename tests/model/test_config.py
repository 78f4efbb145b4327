import dataclasses
import json

import numpy as np
import pytest

from ramnet_np.model import PRESETS, RAMNetConfig, preset


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"vocab": 0}, ValueError, "vocab must be at least 1, got 0"),
        ({"width": 2.5}, TypeError, "width must be an integer, got 2.5"),
        ({"layers": True}, TypeError, "layers must be an integer, got True"),
        ({"heads": 65}, ValueError, r"width must be at least heads \(65\) when channels is not given, got 64"),
        ({"order": 31, "radix": 2}, ValueError, r"radix \*\* order must be below 2\*\*31 slots, got 2 \*\* 31"),
        ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
        ({"ffn_width": -1}, ValueError, "ffn_width must be at least 1, got -1"),
        ({"top_k": 0}, ValueError, "top_k must be between 1 and 1024, got 0"),
        ({"top_k": (8, 1025)}, ValueError, "top_k must be between 1 and 1024, got 1025"),
        ({"top_k": (8, 8, 8)}, ValueError, r"top_k must be one value or a \(write, read\) pair, got 3 values"),
        ({"top_k": None}, TypeError, "top_k must be an integer, got None"),
        ({"renorm": 1}, TypeError, "renorm must be True or False, got 1"),
        ({"output_gate": "relu"}, TypeError, "output_gate must be True or False, got 'relu'"),
        ({"cape": 3}, ValueError, "cape must be between 0 and 2, got 3"),
        ({"cape": (0, -1)}, ValueError, "cape must be between 0 and 2, got -1"),
        ({"cape": (1, 1, 1)}, ValueError, r"cape must have at most one number per layer \(2\), got 3"),
        ({"update": "ema"}, ValueError, "update must be one of 'pdma', 'gsu', got 'ema'"),
        ({"gamma_mode": "free"}, ValueError, "gamma_mode must be one of 'fixed', 'learnable', 'dynamic', got 'free'"),
        ({"norm": "batch"}, ValueError, "norm must be one of 'rmsnorm', 'layernorm', got 'batch'"),
        ({"ffn": "relu"}, ValueError, "ffn must be one of 'swiglu', 'gelu', 'silu', 'none', got 'relu'"),
        ({"gamma": -0.1}, ValueError, "gamma must be 0 or more for update='pdma', got -0.1"),
        (
            {"gamma": 0.0, "gamma_mode": "learnable"},
            ValueError,
            "gamma must be above 0 for update='pdma' with gamma_mode",
        ),
        ({"gamma": float("nan")}, ValueError, "gamma must be between -1e\\+30 and 1e\\+30, got nan"),
        ({"gamma": "1"}, TypeError, "gamma must be a number, got '1'"),
        ({"proxy_eps": 1.5}, ValueError, "proxy_eps must be between 0 and 1, got 1.5"),
        ({"temperature": 0.0}, ValueError, r"temperature must be between 1e-30 and 1e\+30, got 0.0"),
        ({"init_mass": -1.0}, ValueError, r"init_mass must be between 1e-30 and 1e\+30, got -1.0"),
        ({"eps": 0.0}, ValueError, r"eps must be between 1e-30 and 1e\+30, got 0.0"),
        ({"init_std": -0.1}, ValueError, r"init_std must be between 0 and 1e\+30, got -0.1"),
        ({"order": 10**9, "radix": 1}, ValueError, "order must be between 1 and 31, got 1000000000"),
        ({"layers": 10**9}, ValueError, "layers must be between 1 and 4096, got 1000000000"),
        ({"width": 10**5000}, ValueError, "width must be between 1 and 2147483647, got an integer of 16610 bits"),
        ({"temperature": 1e-300}, ValueError, "temperature must be between 1e-30"),
        ({"norm_eps": float("inf")}, ValueError, "norm_eps must be between 1e-30"),
        ({"eps": float("nan")}, ValueError, "eps must be between 1e-30"),
        ({"window": 2**31}, ValueError, "window must be between 1 and 2147483647"),
    ],
)
def test_config_refuses(fields, error, message):
    with pytest.raises(error, match=message):
        RAMNetConfig(**fields)


def test_config_takes_numpys_numbers_as_pythons():
    """They are written to JSON, and compared with what JSON gives back."""
    config = RAMNetConfig(
        width=np.int64(8), top_k=np.array([4, 8]).tolist(), cape=(np.int32(1),), gamma=np.float64(0.5)
    )
    assert config == RAMNetConfig(width=8, top_k=(4, 8), cape=(1,), gamma=0.5)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["width"] == 8


def test_config_allows_what_the_paper_and_the_authors_do():
    assert RAMNetConfig(gamma=0.0).gamma == 0
    assert RAMNetConfig(gamma=-2.0, update="gsu", gamma_mode="dynamic").gamma == -2
    assert RAMNetConfig(top_k=1024).slots == 1024


def test_config_is_frozen_and_hashable():
    config = RAMNetConfig(top_k=[4, 8], cape=[1])
    assert (config.top_k, config.cape) == ((4, 8), (1,))
    assert hash(config) == hash(RAMNetConfig(top_k=(4, 8), cape=(1,)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3


def test_inner_width_follows_the_kind():
    assert RAMNetConfig(width=1024).inner_width == 2816
    assert RAMNetConfig(width=64).inner_width == 256
    assert RAMNetConfig(width=64, ffn="gelu").inner_width == 256
    assert RAMNetConfig(width=100, ffn="silu").inner_width == 400
    assert RAMNetConfig(ffn_width=7).inner_width == 7


def test_presets_are_found_by_name():
    assert {"mqar-small", "mqar-demo", "paper-340m", "authors-340m"} <= PRESETS.keys()
    paper = preset("paper-340m")
    assert [paper.cape_heads(i) for i in (0, 3, 4, 7, 8, 26)] == [16, 16, 8, 8, 0, 0]
    with pytest.raises(ValueError, match=r"preset must be one of 'mqar-demo', .*, got 'huge'"):
        preset("huge")
    with pytest.raises(ValueError, match=r"preset must be one of .* got \['paper-340m'\]"):
        preset(["paper-340m"])
