"""The specialisations that language models, associative recall and the benchmarks ask for, and the limits of each kind.

They can be compiled, and so checked, on a machine without a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .layers.attention import attention_specialisation
from .layers.delta import delta_specialisation
from .layers.embedding import ORDER, embedding_specialisation
from .layers.gate import gate_specialisation
from .layers.loss import loss_specialisation
from .layers.norm import norm_specialisation
from .layers.scale import scale_specialisation
from .layers.short_conv import short_conv_specialisation
from .layers.token_sums import token_sums_specialisation
from .layers.weight_gradient import weight_gradient_specialisation
from .memory.layout import (
    H100,
    Layout,
    choose_layout,
    content_specialisation,
    link_specialisation,
    mass_specialisation,
    reverse_specialisation,
    weigh_specialisation,
)
from .memory.renumber import RENUMBER
from .memory.segments import segment_specialisation
from .optimizer.adamw import adamw_specialisation
from .runtime.module import Specialisation, decode_specialisation
from .step.step import step_specialisation

_TYPES = ("float", "double", "float16", "bfloat16")
_LAYERS = (
    gate_specialisation, scale_specialisation, short_conv_specialisation, token_sums_specialisation,
    loss_specialisation, embedding_specialisation,
)  # fmt: skip
_WITHOUT_HALVES = (
    adamw_specialisation, weight_gradient_specialisation, attention_specialisation, delta_specialisation,
)  # fmt: skip


def _layouts() -> list[Layout]:
    """M = 1024 with every type, fewer and more rows, other K, and rows that cannot be loaded 16 bytes at a time."""
    layouts = [choose_layout(np.dtype(dtype), 1024, 64, 8, 8, H100) for dtype in (np.float32, np.float64, np.float16)]
    layouts.append(replace(layouts[-1], element="bfloat16"))
    layouts += [choose_layout(np.dtype(np.float32), rows, 64, 8, 8, H100) for rows in (64, 2048, 4096, 65536)]
    layouts += [choose_layout(np.dtype(np.float32), 1024, 64, k, k, H100) for k in (16, 32, 64, 128)]
    layouts.append(choose_layout(np.dtype(np.float32), 1024, 53, 5, 11, H100))
    return layouts


DEFAULT_SPECIALISATIONS: list[Specialisation] = [
    *(decode_specialisation(logit, 5, 4, top_k) for logit in _TYPES for top_k in (8, 64)),
    *(decode_specialisation("float", 5, 4, top_k) for top_k in (16, 32)),
    *(decode_specialisation("float", order, radix, 8) for order, radix in ((8, 4), (10, 2), (3, 5))),
    decode_specialisation("float", 2, 32, 32),
    decode_specialisation("double", 2, 16, 16),
    *dict.fromkeys(link_specialisation(layout) for layout in _layouts()),
    *dict.fromkeys(content_specialisation(layout, renumbered) for layout in _layouts() for renumbered in (False, True)),
    *dict.fromkeys(mass_specialisation(layout, False, True, False) for layout in _layouts()),
    mass_specialisation(_layouts()[0], mass_aware=True, in_shared=True, renumbered=False),
    mass_specialisation(_layouts()[0], mass_aware=True, in_shared=False, renumbered=True),
    *dict.fromkeys(reverse_specialisation(layout, False, True) for layout in _layouts()),
    reverse_specialisation(_layouts()[0], mass_aware=True, in_shared=True),
    reverse_specialisation(_layouts()[0], mass_aware=True, in_shared=False),
    *(mass_specialisation(layout, False, True, False, segmented=True) for layout in _layouts()[:2]),
    *(reverse_specialisation(layout, False, True, True, carry) for layout in _layouts()[:2] for carry in (False, True)),
    *dict.fromkeys(weigh_specialisation(layout) for layout in _layouts()[:4]),
    *dict.fromkeys(segment_specialisation(layout) for layout in _layouts() if layout.chunk > 1),
    RENUMBER,
    *(step_specialisation(element, 5, 4, 8, 8, 64) for element in _TYPES),
    *(step_specialisation(element, 5, 4, 8, 65, 64) for element in _TYPES),
    *(step_specialisation("float", 5, 4, *top_k, channels) for top_k, channels in (((5, 11), 53), ((32, 32), 128))),
    step_specialisation("float", 8, 4, 64, 64, 64),
    step_specialisation("double", 2, 64, 64, 64, 64),
    step_specialisation("float", 1, 1, 1, 1, 1),
    *(norm_specialisation(element, layernorm) for element in _TYPES for layernorm in (False, True)),
    *(of_type(element) for element in _TYPES for of_type in _LAYERS),
    ORDER,
    *(of_type(element) for element in ("float", "double") for of_type in _WITHOUT_HALVES),
]
