"""What the core's layers get for CuPy arrays in place of many elementwise launches; names as in ``Backend.fused``."""

from collections.abc import Callable
from typing import Any

from .adamw import AdamWSettings, DeviceAdamW
from .attention import rotate, softmax_rows, softmax_rows_backward
from .blas import matmul, stacked_matmul
from .delta import delta_weigh, delta_weigh_backward, unit_lower_inverse
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
    short_conv_backward,
    short_conv_forward,
)
from .loss import cross_entropy

FUSED: dict[str, Callable[..., Any]] = {
    "matmul": matmul,
    "stacked_matmul": stacked_matmul,
    "column_sum": column_sum,
    "rmsnorm_forward": rmsnorm_forward,
    "rmsnorm_backward": rmsnorm_backward,
    "layernorm_forward": layernorm_forward,
    "layernorm_backward": layernorm_backward,
    "gate_forward": gate_forward,
    "gate_backward": gate_backward,
    "scale_forward": scale_forward,
    "scale_backward": scale_backward,
    "short_conv_forward": short_conv_forward,
    "short_conv_backward": short_conv_backward,
    "rotate": rotate,
    "softmax_rows": softmax_rows,
    "softmax_rows_backward": softmax_rows_backward,
    "delta_weigh": delta_weigh,
    "delta_weigh_backward": delta_weigh_backward,
    "unit_lower_inverse": unit_lower_inverse,
    "cross_entropy": cross_entropy,
    "embedding_backward": embedding_backward,
    "adamw": DeviceAdamW,
    "adamw_settings": AdamWSettings,
}
