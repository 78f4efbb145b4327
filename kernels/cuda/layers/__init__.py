"""The fast layers for CuPy arrays: norms, gates, products, losses, sampling, other mixers, numbers of slots.

Each has the name, the parameters, the results and the refusals of a function of ``ramnet_np/layers`` or of the core,
which is decorated with ``accelerated`` and gives way to it. From there come the named tuples that it returns and the
checks of its arguments, some of them from ``ramnet_np/core/require.py``: nothing else above ``ramnet_np/backend.py`` is
known here.
"""

from collections.abc import Callable
from typing import Any

from ..sparse.numbers import number_slots
from .add import add_in_place
from .attention import rotate, softmax_rows, softmax_rows_backward
from .attention_step import softmax_attention_step
from .blas import matmul, matrix_product, weight_product
from .delta import apply_decay, apply_decay_backward, unit_lower_inverse
from .embedding import embedding_backward
from .few_rows import few_rows_product, normed_gated_product, normed_products, product_added
from .flash_attention import softmax_attention_backward, softmax_attention_forward
from .gate import gate_backward, gate_forward
from .loss import cross_entropy_and_gradient, cross_entropy_backward, cross_entropy_forward
from .norm import layernorm_backward, layernorm_forward, rmsnorm_backward, rmsnorm_forward
from .sampling import mark_seen, sample_tokens, uniform
from .scale import scale_backward, scale_forward
from .short_conv import short_conv_backward, short_conv_forward
from .token_sums import sum_over_tokens

LAYERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        matrix_product, weight_product, matmul, add_in_place, sum_over_tokens,
        few_rows_product, normed_products, normed_gated_product, product_added,
        rmsnorm_forward, rmsnorm_backward, layernorm_forward, layernorm_backward,
        gate_forward, gate_backward, scale_forward, scale_backward, short_conv_forward, short_conv_backward,
        cross_entropy_forward, cross_entropy_backward, cross_entropy_and_gradient, embedding_backward,
        rotate, softmax_rows, softmax_rows_backward, softmax_attention_forward, softmax_attention_backward,
        softmax_attention_step, apply_decay, apply_decay_backward, unit_lower_inverse,
        sample_tokens, mark_seen, uniform, number_slots,
    )
}  # fmt: skip
"""What ``Backend.layers`` of the backends for CuPy arrays holds."""
