"""What the core's layers get for CuPy arrays in place of many elementwise launches; names as in ``Backend.fused``."""

from collections.abc import Callable
from typing import Any

from .adamw import AdamWSettings, DeviceAdamW
from .blas import matmul
from .embedding import embedding_backward
from .layers import (
    column_sum,
    gate_backward,
    gate_forward,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    scale_backward,
    scale_forward,
)
from .loss import cross_entropy

FUSED: dict[str, Callable[..., Any]] = {
    "matmul": matmul,
    "column_sum": column_sum,
    "rmsnorm_forward": rmsnorm_forward,
    "rmsnorm_backward": rmsnorm_backward,
    "layernorm_forward": layernorm_forward,
    "layernorm_backward": layernorm_backward,
    "gate_forward": gate_forward,
    "gate_backward": gate_backward,
    "scale_forward": scale_forward,
    "scale_backward": scale_backward,
    "cross_entropy": cross_entropy,
    "embedding_backward": embedding_backward,
    "adamw": DeviceAdamW,
    "adamw_settings": AdamWSettings,
}
