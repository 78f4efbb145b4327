"""Models on disk: round trips to the same bits, the authors' format, and files that are none."""

import json

import numpy as np
import pytest

pytest.importorskip("safetensors")  # a model runs without it
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ramnet_np.model import PRESETS, RAMNet, RAMNetConfig
from ramnet_np.model.checkpoint import config_from_json, config_to_json
from ramnet_np.model.layout import parameter_shapes

CONFIG = RAMNetConfig(vocab=11, width=6, layers=2, heads=2, order=2, radix=3, top_k=4, cape=(2,), ffn_width=5)
IDS = np.array([[1, 2, 3, 4]])

# what the authors' package writes for a small model, save for keys that have no bearing on ours
THEIRS = {
    "architectures": ["RAMNetForCausalLM"],
    "model_type": "ramnet",
    "vocab_size": 11,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "addr_order": 2,
    "addr_radix": 3,
    "value_chs": None,
    "gamma": -0.5,
    "gamma_mode": "dynamic",
    "embed_num": [2, 1],
    "init_mass": None,
    "addr_temperature": None,
    "addr_top_k": [3, 4],
    "addr_top_k_re_norm": False,
    "mass_aware": True,
    "output_gate": "sigmoid",
    "output_norm": True,
    "addr_proj_bias": True,
    "addr_prior_range": 1.5,
    "gate_initializer_bias": 3.0,
    "value_proj_bias": False,
    "address_scaling": True,
    "ram_attn_eps": 1e-12,
    "hidden_ratio": 4,
    "intermediate_size": None,
    "hidden_act": "fuse_SwiGLU",
    "fuse_norm": True,
    "norm_eps": 1e-6,
    "use_cache": True,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "dtype": "bfloat16",
}
THEIRS_AS_OURS = RAMNetConfig(
    vocab=11, width=6, layers=2, heads=2, order=2, radix=3, gamma=-0.5, gamma_mode="dynamic", update="gsu",
    cape=(2, 1), top_k=(3, 4), mass_aware=True, output_gate=True, output_norm=True, tie_embeddings=False,
)  # fmt: skip

VARIANTS = {
    "defaults": RAMNetConfig(vocab=11, width=6, order=2, radix=3),
    "pdma": CONFIG,
    "layernorm-gelu": RAMNetConfig(vocab=11, width=6, order=2, radix=3, norm="layernorm", ffn="gelu", proxy_eps=0.01),
    "no-ffn-learnable": RAMNetConfig(
        vocab=11, width=6, order=2, radix=3, ffn="none", gamma_mode="learnable", temperature=0.3, init_mass=0.5,
        renorm=(True, False), top_k=(2, 3), value_bias=True, init_std=0.1, norm_eps=1e-5, eps=1e-9, channels=4,
    ),
    "authors": THEIRS_AS_OURS,
    "silu-gate": RAMNetConfig(vocab=11, width=6, order=2, radix=3, output_gate=True, gate_activation="silu"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_to_the_same_bits(name, dtype, tmp_path):
    model = RAMNet(VARIANTS[name], seed=4, dtype=dtype)
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = RAMNet.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert list(loaded.params) == list(model.params)
    for key, p in model.params.items():
        assert loaded.params[key].dtype == dtype
        np.testing.assert_array_equal(loaded.params[key], p)
    np.testing.assert_array_equal(loaded.forward(IDS)[0], model.forward(IDS)[0])
    loaded.params["model.norm.weight"][...] = 2  # loaded arrays can be trained on
    loaded.save_pretrained(tmp_path / "new" / "folder")  # and saved over the old ones
    assert (RAMNet.from_pretrained(tmp_path / "new" / "folder").params["model.norm.weight"] == 2).all()
    assert sorted(f.name for f in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_16_bits_are_half_of_the_bytes(dtype, tmp_path):
    model = RAMNet(CONFIG, seed=4, dtype=dtype)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", dtype="bfloat16")
    loaded = RAMNet.from_pretrained(tmp_path / "half")
    assert loaded.config == model.config
    for key, p in model.params.items():
        assert loaded.params[key].dtype == np.float32
        assert not (loaded.params[key].view(np.uint32) & 0xFFFF).any()
        np.testing.assert_allclose(loaded.params[key], p, rtol=2**-8)
    assert any((loaded.params[key] != p).any() for key, p in model.params.items())
    with safe_open(tmp_path / "half" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    loaded.save_pretrained(tmp_path / "again", dtype="bfloat16")  # what is rounded stays as it is
    halves = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("half", "again")]
    assert halves[0] == halves[1]
    header = int.from_bytes(halves[0][:8], "little") + 8
    assert len(halves[0]) == header + 2 * model.num_parameters()


def test_16_bits_refuse_what_they_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="dtype must be one of 'bfloat16', got 'float16'"):
        RAMNet(CONFIG).save_pretrained(tmp_path, dtype="float16")
    model = RAMNet(CONFIG)
    model.params["model.norm.weight"][0] = np.finfo(np.float32).max  # the next number in 16 bits is infinite
    with pytest.raises(ValueError, match=r"params\['model.norm.weight'\] must be finite"):
        model.save_pretrained(tmp_path, dtype="bfloat16")
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("config", [*VARIANTS.values(), *PRESETS.values()])
def test_config_round_trip_through_json(config):
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_their_config_names_the_gates_activation():
    named = {name: config_to_json(config)["output_gate"] for name, config in VARIANTS.items()}
    assert (named["defaults"], named["authors"], named["silu-gate"]) == (None, "sigmoid", "silu")


def test_reads_the_authors_config():
    assert config_from_json(THEIRS) == THEIRS_AS_OURS


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"addr_top_k": None}, {"top_k": 9}),
        ({"embed_num": 2}, {"cape": 2}),
        ({"hidden_act": "SwiGLU", "intermediate_size": 7}, {"ffn_width": 7}),
        ({"hidden_act": "GELU"}, {"ffn": "gelu"}),
        ({"hidden_act": "Swish"}, {"ffn": "silu"}),
        ({"hidden_ratio": 80}, {"ffn_width": 512}),
        ({"hidden_ratio": 3, "hidden_act": "SiLU"}, {"ffn": "silu", "ffn_width": 18}),
        ({"output_gate": None, "gamma_mode": "fixed"}, {"output_gate": False, "gamma_mode": "fixed"}),
        ({"output_gate": "silu"}, {"gate_activation": "silu"}),
    ],
)
def test_reads_what_the_authors_config_may_say(changes, fields):
    wanted = {name: getattr(THEIRS_AS_OURS, name) for name in THEIRS_AS_OURS.__dataclass_fields__} | fields
    assert config_from_json(THEIRS | changes) == RAMNetConfig(**wanted)


def test_reads_a_bfloat16_checkpoint_of_theirs(tmp_path):
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(THEIRS_AS_OURS)
    wide = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    halves = {name: (p.view(np.uint32) >> 16).astype(np.uint16) for name, p in wide.items()}
    path = tmp_path / "model.safetensors"
    save_file(halves, path, metadata={"format": "pt"})
    raw = path.read_bytes()
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    renamed = header.replace(b'"U16"', b'"BF16"')
    path.write_bytes(len(renamed).to_bytes(8, "little") + renamed + raw[8 + len(header) :])
    (tmp_path / "config.json").write_text(json.dumps(THEIRS))
    model = RAMNet.from_pretrained(tmp_path)
    for name, p in wide.items():
        expected = (p.view(np.uint32) & 0xFFFF0000).view(np.float32)
        np.testing.assert_array_equal(model.params[name], expected)


def test_files_are_what_the_authors_package_reads(tmp_path):
    RAMNet(THEIRS_AS_OURS).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    unlike = {key: value for key, value in THEIRS.items() if saved.get(key, value) != value}
    assert unlike == {"hidden_act": "fuse_SwiGLU"}  # the same network, computed in one kernel or several
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == parameter_shapes(  # noqa: SIM118
            THEIRS_AS_OURS
        )


@pytest.fixture
def saved(tmp_path):
    RAMNet(CONFIG).save_pretrained(tmp_path)
    return tmp_path


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no '.*nowhere' here$"):
        RAMNet.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"`hf download lab/RAM-Net.1b --local-dir FOLDER`$"):
        RAMNet.from_pretrained("lab/RAM-Net.1b")
    for wrong, error in (("", ValueError), (3, TypeError)):
        for call in (RAMNet.from_pretrained, RAMNet(CONFIG).save_pretrained):
            with pytest.raises(error, match="folder must "):
                call(wrong)
    (saved / "model.safetensors.index.json").touch()
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold all parameters in model.safetensors, got .* in parts"):
        RAMNet.from_pretrained(saved)
    (saved / "model.safetensors.index.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"folder must hold config.json and model.safetensors, but .* is missing"
    ):
        RAMNet.from_pretrained(saved)


@pytest.mark.parametrize("content", [b"", b"not a tensor file, whatever its name", None])
def test_damaged_weights_are_refused(saved, content):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] if content is None else content)
    with pytest.raises(ValueError, match=r"model.safetensors' is damaged or not a safetensors file"):
        RAMNet.from_pretrained(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json' is damaged or not JSON"),
        ("[" * 100_000, "config.json' is damaged or not JSON: it is nested too deeply"),
        ("[1]", "config.json' must hold a JSON object, got list"),
        ('{"model_type": "llama"}', "is no configuration of a RAM-Net: model_type must be 'ramnet', got 'llama'"),
        ('{"model_type": "ramnet", "vocab_size": 3}', "hidden_size, num_hidden_layers, .* must be given"),
    ],
)
def test_foreign_configs_are_refused(saved, text, message):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RAMNet.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_gate": "relu"}, "output_gate must be 'sigmoid', 'silu' or null, got 'relu'"),
        ({"hidden_act": "tanh"}, "hidden_act must be SwiGLU, GELU, SiLU or Swish, got 'tanh'"),
        ({"addr_top_k": 0}, "top_k must be between 1 and 9, got 0"),
        ({"hidden_size": "6"}, "width must be an integer, got '6'"),
        (
            {"intermediate_size": None, "hidden_ratio": 1e300},
            "hidden_ratio must be between 1e-30 and 1e.30, got 1e.300",
        ),
        ({"intermediate_size": None, "hidden_ratio": [4]}, r"hidden_ratio must be a number, got \[4\]"),
        ({"intermediate_size": None, "hidden_ratio": float("inf")}, "config.json' is damaged or not JSON: .* Infinity"),
        ({"norm_eps": float("nan")}, "config.json' is damaged or not JSON: .* NaN"),
        ({"num_hidden_layers": 300_000}, "layers must be between 1 and 4096, got 300000"),
        ({"addr_order": 10**9, "addr_radix": 2, "addr_top_k": None}, "order must be between 1 and 31"),
        ({"hidden_size": 10**400}, "must be between 1 and 2147483647, got an integer of 1329 bits"),
        (
            {"ramnet_np": {"pickle": 1}},
            "ramnet_np may hold update, proxy_eps, learned_slots, gate_activation, address_prior, .*, got",
        ),
    ],
)
def test_settings_out_of_bounds_are_refused(saved, changes, message):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        RAMNet.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks 'model.norm.weight'"),
        (lambda t: t.update({"lm_head.weight": np.ones((11, 6), np.float32)}), "holds 'lm_head.weight', which"),
        (
            lambda t: t.update({"model.norm.weight": np.ones(5, np.float32)}),
            r"'model.norm.weight' in .* must have shape \(6,\), got \(5,\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.full(6, np.nan, np.float32)}),
            "'model.norm.weight' in .* must be finite, got NaN or infinity",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(6, np.int32)}),
            "'model.norm.weight' must be F64, F32, F16 or BF16, got I32",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(6, np.float64)}),
            "must have one dtype, got float32 and float64",
        ),
    ],
)
def test_wrong_tensors_are_named(saved, change, message):
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        RAMNet.from_pretrained(saved)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"folder must be one that can be written to, got '.*file'"):
        RAMNet(CONFIG).save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.ones(5), r"params\['model.norm.weight'\] must have shape"),
        (np.full(6, np.inf, np.float32), "must be finite"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(saved, wrong, message):
    model = RAMNet(CONFIG, seed=9)
    model.params["model.norm.weight"] = wrong
    before = [(f.name, f.read_bytes()) for f in sorted(saved.iterdir())]
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(saved)
    assert [(f.name, f.read_bytes()) for f in sorted(saved.iterdir())] == before


def test_a_save_leaves_the_other_files_of_a_folder(tmp_path):
    for name in ("notes.txt", "model.safetensors.old", "config.json.bak"):
        (tmp_path / name).write_text(name)
    RAMNet(CONFIG).save_pretrained(tmp_path)
    for name in ("notes.txt", "model.safetensors.old", "config.json.bak"):
        assert (tmp_path / name).read_text() == name
    assert len(list(tmp_path.iterdir())) == 5


def test_a_model_that_does_not_fit_is_said_before_it_is_read(saved, monkeypatch):
    monkeypatch.setattr("ramnet_np.model.memory.available_memory", lambda: 1000)
    with pytest.raises(
        MemoryError, match=r"model.safetensors' needs at least .* GB of memory, this machine has 0.0 GB"
    ):
        RAMNet.from_pretrained(saved)


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    before = RAMNet.from_pretrained(saved)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("ramnet_np.model.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="No space left on device"):
        RAMNet(CONFIG, seed=9).save_pretrained(saved)
    after = RAMNet.from_pretrained(saved)
    for name, p in before.params.items():
        np.testing.assert_array_equal(after.params[name], p)
