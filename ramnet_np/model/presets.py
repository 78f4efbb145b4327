"""Configurations by name."""

from __future__ import annotations

from ramnet_np.model.config import RAMNetConfig

PRESETS: dict[str, RAMNetConfig] = {
    # Two layers suffice for recall: heads that use CAPE bring each key beside its value, content heads then look it up.
    # Learns fastest with sharp addresses (tau), many slots in reach of a token (K) and content heads without a prior.
    "mqar-demo": RAMNetConfig(
        vocab=256, order=3, top_k=16, temperature=0.25, cape=(2, 0), address_prior="cape", ffn="none"
    ),
    # In a large vocabulary CAPE takes long to find the token before: a convolution shows it, content heads do the rest.
    "mqar-small": RAMNetConfig(
        vocab=8192,
        heads=1,
        channels=32,
        top_k=16,
        temperature=0.25,
        update="gsu",
        gamma=0.0,
        gamma_mode="dynamic",
        short_conv=2,
        address_prior="cape",
        ffn="none",
    ),
    # Bytes as tokens: mqar-demo with more heads and digits, and a feed-forward network for what is not recall.
    "text-small": RAMNetConfig(
        vocab=256,
        heads=4,
        order=6,
        radix=2,
        top_k=16,
        temperature=0.25,
        cape=(4, 0),
        address_prior="cape",
        ffn="gelu",
        ffn_width=128,
    ),
    # Paper, section 5.2: 340.8M parameters.
    "paper-340m": RAMNetConfig(
        vocab=32000, width=1024, layers=27, heads=16, value_bias=True, cape=(16,) * 4 + (8,) * 4
    ),
    # The same at twice the width, with twice the heads: 1.3 billion parameters.
    "paper-1.3b": RAMNetConfig(
        vocab=32000, width=2048, layers=27, heads=32, value_bias=True, cape=(32,) * 4 + (16,) * 4
    ),
    # The authors' package after the paper. They publish no configuration of this size: this is the one that their
    # package defaults to, with half the width and half the heads.
    "authors-340m": RAMNetConfig(
        vocab=32000,
        width=1024,
        layers=25,
        heads=16,
        update="gsu",
        gamma=0.0,
        gamma_mode="dynamic",
        cape=(16,) * 4 + (8,) * 4 + (4,) * 4 + (2,) * 4 + (1,) * 9,
        output_gate=True,
        output_norm=True,
    ),
}


def preset(name: str) -> RAMNetConfig:
    """The configuration of that name. Raises ValueError for another name.

    >>> preset("paper-340m").slots
    1024
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}, got {name!r}")
    return PRESETS[name]
