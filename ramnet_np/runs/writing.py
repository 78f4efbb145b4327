"""Text that a model writes: prompts become tokens, tokens become text, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.codec import Codec, TextDecoder
from ramnet_np.data.stop import StopScan
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling


def encode_prompts(prompts: Sequence[str], codec: Codec) -> list[NDArray[np.int32]]:
    """The tokens of every prompt. TypeError or ValueError for one that is empty or no text.

    >>> from ramnet_np.data.codec import ByteCodec
    >>> encode_prompts(["Tom"], ByteCodec())[0].tolist()
    [84, 111, 109]
    """
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be text, got {type(prompt).__name__}")
        if not prompt:
            raise ValueError("prompt must hold at least one character, got none")
    return [codec.encode(prompt) for prompt in prompts]


def write(
    generation: Generation,
    length: int,
    sampling: Sampling,
    codec: Codec,
    stop: Sequence[str] = (),
    ends: Callable[[], bool] = lambda: False,
) -> Iterator[list[str]]:
    """What every sequence writes: a string for each sequence and token, and at last what was held back.

    It ends after ``length`` tokens, when ``ends`` says so, or when every sequence has come to a stop string; the
    sequences that come to one earlier go on unseen.

    >>> from ramnet_np.data.codec import ByteCodec
    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2), seed=0)
    >>> generation = Generation(model, encode_prompts(["Tom", "A"], ByteCodec()))
    >>> len(list(write(generation, 5, Sampling(), ByteCodec())))
    6
    """
    rows = [(TextDecoder(codec), StopScan(stop)) for _ in range(generation.batch)]
    for _ in range(length):
        if ends() or all(scan.stopped for _, scan in rows):
            break
        tokens = generation.next_on_host(sampling).tolist()
        yield [scan.feed(text.feed(token)) for token, (text, scan) in zip(tokens, rows, strict=True)]
    yield [scan.feed(text.end()) + scan.end() for text, scan in rows]
