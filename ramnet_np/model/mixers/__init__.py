"""What a layer remembers with: one module a mixer, and the table that finds them by name.

``ram`` is RAM-Net's own layer; the others are there to compare it with. A new mixer is a module here, its name in
``MixerName`` of model/config.py, and its settings, if it has any, among the fields of ``RAMNetConfig``.
"""

from ramnet_np.model.config import MIXER_CHECKS, RAMNetConfig, of_layer
from ramnet_np.model.mixers import delta, gla, linear, mamba2, ram, softmax, window
from ramnet_np.model.mixers.interface import CallOptions, Mixer, StateSize, Variant

__all__ = ["MIXERS", "CallOptions", "Mixer", "StateSize", "Variant", "add_mixer", "mixers_of", "variant_labels"]

MIXERS: dict[str, Mixer] = {}


def add_mixer(mixer: Mixer) -> None:
    """Put ``mixer`` into the table: from then on ``RAMNetConfig(mixer=mixer.name)`` makes models of it.

    ValueError if the table has a mixer of that name.

    >>> add_mixer(MIXERS["delta"])
    Traceback (most recent call last):
        ...
    ValueError: name must be none of 'ram', 'softmax', 'window', 'linear', 'delta', 'gla', 'mamba2', got 'delta'
    """
    if mixer.name in MIXERS:
        raise ValueError(f"name must be none of {', '.join(map(repr, MIXERS))}, got {mixer.name!r}")
    MIXERS[mixer.name] = mixer
    MIXER_CHECKS[mixer.name] = mixer.check


def mixers_of(config: RAMNetConfig) -> list[Mixer]:
    """The mixer of every layer.

    >>> [mixer.name for mixer in mixers_of(RAMNetConfig(layers=3, hybrid="window", hybrid_every=3))]
    ['ram', 'ram', 'window']
    """
    return [MIXERS[of_layer(config, i).mixer] for i in range(config.layers)]


def variant_labels() -> list[str]:
    """What tables and figures call the variants of all mixers, in the order in which they stand there.

    >>> variant_labels()[:2], variant_labels()[-1]
    (['RAM-Net', 'softmax attention'], 'softmax, no positions')
    """
    variants = [variant for mixer in MIXERS.values() for variant in mixer.variants]
    return [variant.label for variant in sorted(variants, key=lambda variant: variant.ablation)]


for _module in (ram, softmax, window, linear, delta, gla, mamba2):
    add_mixer(_module.MIXER)
