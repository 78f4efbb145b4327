"""A model on disk: ``model.safetensors`` and ``config.json`` in one folder, in the authors' format.

The parameters have the authors' names already. The configuration is translated both ways; what theirs cannot say (the
PDMA update, LayerNorm, ...) goes under one key of its own, ``"ramnet_np"``, which their package ignores. A config
without it is theirs and means the GSU update. Nothing here unpickles anything. Source: the authors' package ramnet.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from ramnet_np.core.arrays import on_host
from ramnet_np.core.bfloat16 import from_bfloat16, to_bfloat16
from ramnet_np.model.checks import SMALLEST, check_choice, check_integer, check_number
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.files import read_json, replacing, why
from ramnet_np.model.layout import parameter_shapes, require_parameters
from ramnet_np.model.memory import require_memory
from ramnet_np.model.parameters import Params
from ramnet_np.model.streamed_file import Streamed, write_streamed

Stored = Literal["bfloat16"]  # what a file may hold parameters in, other than as they are

WEIGHTS, CONFIG = "model.safetensors", "config.json"
OUR_KEY = "ramnet_np"

# our field -> the authors' key, where the two mean the same and have the same values
_SAME = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "order": "addr_order",
    "radix": "addr_radix",
    "channels": "value_chs",
    "top_k": "addr_top_k",
    "renorm": "addr_top_k_re_norm",
    "gamma": "gamma",
    "gamma_mode": "gamma_mode",
    "cape": "embed_num",
    "temperature": "addr_temperature",
    "init_mass": "init_mass",
    "mass_aware": "mass_aware",
    "output_norm": "output_norm",
    "address_bias": "addr_proj_bias",
    "value_bias": "value_proj_bias",
    "address_scale": "address_scaling",
    "eps": "ram_attn_eps",
    "norm_eps": "norm_eps",
    "ffn_width": "intermediate_size",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
# what a config of theirs means by leaving a key out, where that is not our default
_THEIR_DEFAULTS = {"gamma": 0.0, "gamma_mode": "dynamic", "output_norm": True, "tie_embeddings": False}
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "embed_num")
# theirs cannot say these; of the rest, output_gate has other values there
_OURS = tuple(field.name for field in fields(RAMNetConfig) if field.name not in (*_SAME, "output_gate"))
_FFN_NAMES = {"swiglu": "SwiGLU", "gelu": "GELU", "silu": "SiLU", "none": "SwiGLU"}
_FFN_KINDS = {"fuse_swiglu": "swiglu", "swiglu": "swiglu", "gelu": "gelu", "silu": "silu", "swish": "silu"}


def save_model(
    folder: str | os.PathLike[str], config: RAMNetConfig, params: Params, dtype: Stored | None = None
) -> None:
    """Write the two files into ``folder``, which is made if missing.

    ``dtype``: "bfloat16" rounds the parameters to 16 bits: half of the bytes, which load as float32.
    Each is written under another name and renamed when both are whole: a crash leaves no half file.
    OSError where the folder cannot be written to or the disk is full, ValueError or TypeError for ``params`` that could
    not be loaded again. Other files of the folder are left alone. Source: the authors' package ramnet.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model.layout import model_parameters
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(vocab=8, width=4, layers=1, order=2, radix=2, top_k=2)
    >>> params = init_parameters(model_parameters(config), seed=0, dtype=np.float32)
    >>> with TemporaryDirectory() as folder:
    ...     save_model(folder, config, params)
    ...     print(sorted(path.name for path in Path(folder).iterdir()))
    ['config.json', 'model.safetensors']
    """
    _require_path(folder)
    require_parameters(params, config)
    if dtype is not None:
        check_choice("dtype", dtype, Stored)
    tensors = {name: np.ascontiguousarray(_at_least_float32(on_host(p))) for name, p in params.items()}
    if dtype is not None:
        tensors = {name: to_bfloat16(p.astype(np.float32, copy=False)) for name, p in tensors.items()}
    for name, p in tensors.items():
        if not _is_finite(p if dtype is None else from_bfloat16(p)):
            raise ValueError(f"params[{name!r}] must be finite to be saved, got NaN or infinity")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"folder must be one that can be written to, got {str(folder)!r}: {why(error)}") from error
    with replacing(folder / WEIGHTS, folder / CONFIG) as (weights, text):
        about = {"format": "pt"}  # without this entry the authors' loader refuses the file
        if dtype is None:
            save_file(tensors, weights, metadata=about)
        else:
            halves = {name: Streamed.of(p)._replace(kind="BF16") for name, p in tensors.items()}
            write_streamed(weights, halves, about)
        text.write_text(json.dumps(config_to_json(config), indent=2) + "\n", encoding="utf-8")


def _at_least_float32(array: np.ndarray) -> np.ndarray:
    return array if array.itemsize >= 4 else array.astype(np.float32)


def load_model(folder: str | os.PathLike[str]) -> tuple[RAMNetConfig, Params]:
    """Read configuration and parameters from ``folder``.

    float32 and float64 stay as they are; half types (the authors train in bfloat16) become float32, exactly.
    FileNotFoundError or ValueError, naming the file and the tensor, also for numbers that are not finite; MemoryError
    where the model does not fit. Source: the authors' package ramnet.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model.layout import model_parameters
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(vocab=8, width=4, layers=1, order=2, radix=2, top_k=2)
    >>> params = init_parameters(model_parameters(config), seed=0, dtype=np.float32)
    >>> with TemporaryDirectory() as folder:
    ...     save_model(folder, config, params)
    ...     loaded, again = load_model(folder)
    >>> loaded == config, all(np.array_equal(again[name], p) for name, p in params.items())
    (True, True)
    """
    path = _folder_of_model(folder)
    config = _read_config(path / CONFIG)
    return config, _read_weights(path / WEIGHTS, config)


def config_to_json(config: RAMNetConfig) -> dict[str, Any]:
    """The authors' config.json, with our own settings under one more key.

    Source: the authors' package ramnet.

    >>> config_to_json(RAMNetConfig(order=3))["addr_order"]
    3
    """
    theirs = {key: getattr(config, field) for field, key in _SAME.items()}
    return {
        "model_type": "ramnet",
        "architectures": ["RAMNetForCausalLM"],
        **theirs,
        "output_gate": config.gate_activation if config.output_gate else None,
        "hidden_act": _FFN_NAMES[config.ffn],
        OUR_KEY: {field: getattr(config, field) for field in _OURS},
    }


def config_from_json(saved: dict[str, Any]) -> RAMNetConfig:
    """The inverse; also reads the config.json of the authors' package. ValueError or TypeError if it is neither.

    Source: the authors' package ramnet.

    >>> config = RAMNetConfig(order=3, update="gsu")
    >>> config_from_json(config_to_json(config)) == config
    True
    >>> config_from_json({"model_type": "gpt"})
    Traceback (most recent call last):
        ...
    ValueError: model_type must be 'ramnet', got 'gpt'
    """
    if saved.get("model_type") != "ramnet":
        raise ValueError(f"model_type must be 'ramnet', got {saved.get('model_type')!r}")
    missing = [key for key in _REQUIRED if key not in saved]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given, got a config without")
    settings: dict[str, Any] = _THEIR_DEFAULTS | {field: saved[key] for field, key in _SAME.items() if key in saved}
    act, gate = str(saved.get("hidden_act", "SwiGLU")), saved.get("output_gate", "sigmoid")
    if act.lower() not in _FFN_KINDS:
        raise ValueError(f"hidden_act must be SwiGLU, GELU, SiLU or Swish, got {act!r}")
    if gate not in ("sigmoid", "silu", None):
        raise ValueError(f"output_gate must be 'sigmoid', 'silu' or null, got {gate!r}")
    settings |= {"update": "gsu", "ffn": _FFN_KINDS[act.lower()], "output_gate": gate is not None}
    settings["gate_activation"] = gate or "sigmoid"
    if settings.get("top_k", 8) is None:  # theirs for "all slots"
        settings["top_k"] = RAMNetConfig(
            order=saved.get("addr_order", 5), radix=saved.get("addr_radix", 4), top_k=1
        ).slots
    if settings.get("ffn_width") is None and saved.get("hidden_ratio", 4) not in (4, None):
        check_integer("hidden_size", saved["hidden_size"], 1)
        check_number("hidden_ratio", saved["hidden_ratio"], low=SMALLEST)
        settings["ffn_width"] = _width_by_ratio(saved["hidden_size"], saved["hidden_ratio"], settings["ffn"])
    ours = saved.get(OUR_KEY, {})
    if not isinstance(ours, dict) or not set(ours) <= set(_OURS):
        raise ValueError(f"{OUR_KEY} may hold {', '.join(_OURS)}, got {ours!r}")
    return RAMNetConfig(**(settings | ours))


def _folder_of_model(folder: str | os.PathLike[str]) -> Path:
    """FileNotFoundError, saying what to do, unless ``folder`` has the two files."""
    _require_path(folder)
    path, given = Path(folder), os.fspath(folder)
    if not path.exists():
        words = f"folder must hold {CONFIG} and {WEIGHTS}, but there is no {given!r} here"
        raise FileNotFoundError(words + hub_hint(str(given)))
    if (path / f"{WEIGHTS}.index.json").is_file() and not (path / WEIGHTS).is_file():
        raise FileNotFoundError(f"folder must hold all parameters in {WEIGHTS}, got {given!r}, where they are in parts")
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"folder must hold {CONFIG} and {WEIGHTS}, but {str(path / name)!r} is missing")
    return path


def hub_hint(name: str) -> str:
    """What to add to an error about a folder that is not there, if ``name`` is like those of the Hugging Face Hub.

    >>> hub_hint("lab/model")
    '; a model of the Hugging Face Hub is fetched by `hf download lab/model --local-dir FOLDER`'
    >>> hub_hint("runs/a/checkpoints")
    ''
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return ""
    return f"; a model of the Hugging Face Hub is fetched by `hf download {name} --local-dir FOLDER`"


def _require_path(folder: Any) -> None:
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be a path, got {folder!r}")
    if not os.fspath(folder):
        raise ValueError("folder must name a folder, got ''")


def _is_finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))  # NaN would be the least and the largest


def _read_config(path: Path) -> RAMNetConfig:
    saved = read_json(path)
    if not isinstance(saved, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {type(saved).__name__}")
    try:
        return config_from_json(saved)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no configuration of a RAM-Net: {error}") from error


def _read_weights(path: Path, config: RAMNetConfig) -> Params:
    # the file, and the numbers in it beside it
    require_memory(2 * path.stat().st_size, f"{str(path)!r}")
    try:
        tensors = dict(deserialize(path.read_bytes()))
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged or not a safetensors file: {error}") from error
    shapes = parameter_shapes(config)
    for name in tensors.keys() - shapes.keys():
        raise ValueError(f"{str(path)!r} holds {name!r}, which the model that {CONFIG} describes does not have")
    params = {}
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"{str(path)!r} lacks {name!r}, which the model that {CONFIG} describes has")
        tensor = tensors[name]
        if tuple(tensor["shape"]) != shape:
            raise ValueError(f"{name!r} in {str(path)!r} must have shape {shape}, got {tuple(tensor['shape'])}")
        params[name] = _decode(name, tensor["dtype"], tensor["data"]).reshape(shape)
        if not _is_finite(params[name]):
            raise ValueError(f"{name!r} in {str(path)!r} must be finite, got NaN or infinity")
    dtypes = {p.dtype.name for p in params.values()}
    if len(dtypes) > 1:
        raise ValueError(f"the tensors in {str(path)!r} must have one dtype, got {' and '.join(sorted(dtypes))}")
    return params


def _decode(name: str, dtype: str, data: bytearray) -> np.ndarray:
    """Little-endian bytes as float32 or float64."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    if dtype in ("F32", "F64"):
        return np.frombuffer(data, "<f4" if dtype == "F32" else "<f8")
    raise ValueError(f"{name!r} must be F64, F32, F16 or BF16, got {dtype}")


def _width_by_ratio(width: int, ratio: float, ffn: str) -> int:
    """Their inner width when only a ratio is given."""
    if ffn == "swiglu":
        return 256 * math.ceil(int(width * ratio * 2 / 3) / 256)
    return int(width * ratio)
