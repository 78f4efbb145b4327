"""Let a language model write, as the command starts it: prompts, how to draw, where to go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from ramnet_np.core.arrays import namespace_of
from ramnet_np.data.codec import Codec, prompt_bytes
from ramnet_np.data.stop import check_stop
from ramnet_np.model import RAMNet
from ramnet_np.model.checks import check_integer
from ramnet_np.model.files import why
from ramnet_np.model.generation import Generation
from ramnet_np.model.network import Device
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.settled import Weights
from ramnet_np.model.state_file import load_generation, save_generation
from ramnet_np.runs.text import load_codec, load_text_model
from ramnet_np.runs.tier_options import TierOptions
from ramnet_np.runs.writing import encode_prompts, write
from ramnet_np.train.interrupt import DeferredInterrupt

ON_SIGNAL = "ending the text, then writing the state; once more stops at once"

HELP = """\
usage: ramnet-np generate FOLDER [options]

Let a model of `ramnet-np train text` write, token by token. FOLDER is a run, or one of its checkpoints.

  ramnet-np generate runs/book --prompt "The "                       400 tokens behind it
  ramnet-np generate runs/book --prompt-file letter.txt --stop "Yours"
  ramnet-np generate runs/book --prompt A --prompt B --temperature 0  two texts, the likeliest
  ramnet-np generate runs/book --prompt-file long.txt --length 0 --state long.state
  ramnet-np generate runs/book --state long.state --keep-state       go on from there, as often as you like

what to write:
  --prompt TEXT             what the text starts with; may be repeated, for several texts [a line break]
  --prompt-file FILE        the same from a file; may be repeated
  --length N                tokens to write: bytes, or pieces of the model's tokenizer [400]
  --stop TEXT               end before this text; may be repeated [none]
how to choose tokens, in this order:
  --repetition-penalty X    above 1: tokens that were there before become less likely [1]
  --temperature X           0: always the likeliest; 1: by the model's probabilities [0.8]
  --top-k N                 only the N likeliest [none]
  --top-p X                 only the fewest likeliest that have this share of the probability [1]
  --min-p X                 only those at least this many times as likely as the likeliest [0]
  --seed N                  decides the draws; text number b, from 0, draws with N + b [0]
where slots are kept: touched ones only, if one of these is given; the text is the same for all sizes;
only how many slots there are cannot change after training, as the addresses are learned for them:
  --memory.host SIZE        in the host's memory, such as 64GiB, or all
  --memory.disk FOLDER      what was not used longest, in a file there; --memory.disk-limit SIZE
  --memory.gpu SIZE         with --device gpu, on the GPU
  --memory.rows bfloat16    contents in 16 bits, half the room; rounding them changes the text a little
where to go on, and where to run:
  --state FILE              go on from this file if it exists, and write it at the end [none]
  --keep-state              go on from --state without writing it
  --device cpu|gpu          where the model runs; gpu needs CuPy and an NVIDIA GPU [cpu]
  --dtype NAME              float32, float64, bfloat16; on a GPU also float16 [that of the folder]
                            bfloat16 on a CPU rounds the matrices alone; a token takes about 0.6 of the time

The prompt runs at once; a token then costs the same however long the text is. Its speed is said at the end.
"""

Texts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
Files = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class GenerateOptions:
    """What ``ramnet-np generate`` is told; HELP explains it."""

    folder: tyro.conf.Positional[Path]
    prompt: Texts = ()
    prompt_file: Files = ()
    length: int = 400
    stop: Texts = ()
    sampling: Annotated[Sampling, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: Sampling(temperature=0.8))
    memory: TierOptions = field(default_factory=TierOptions)
    state: Path | None = None
    keep_state: bool = False
    device: Device = "cpu"
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_integer("length", self.length, 0)
        check_stop(self.stop)
        if self.device == "cpu" and self.dtype not in (None, "float32", "float64", "bfloat16"):
            raise ValueError(f"dtype must be float32, float64 or bfloat16 on the CPU, got {self.dtype}")
        if self.keep_state and self.state is None:
            raise ValueError("keep_state needs a state to go on from, got none")
        if self.state is not None and not self.state.is_file():
            _require_new_file(self.state, self.keep_state)

    @property
    def weights(self) -> Weights | None:
        """What the matrices are held in: 16 bits on a CPU with ``dtype`` "bfloat16", where the rest is float32."""
        return "bfloat16" if self.device == "cpu" and self.dtype == "bfloat16" else None


def run_generate(options: GenerateOptions) -> int | None:
    """Print what the model writes, and on the standard error how fast.

    With one prompt the text appears token by token; of several the first does. Where a state is written, Ctrl-C while
    the model writes ends the text, and the state follows it; returns the signal that ended it.
    ValueError, OSError or RuntimeError in one sentence before anything is printed or written.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> with TemporaryDirectory() as folder:
    ...     RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, init_std=0.0)).save_pretrained(folder)
    ...     run_generate(GenerateOptions(Path(folder), ("Tom",), length=2, sampling=Sampling(), stop=("\\0",)))
    Tom
    """
    model, codec = load_text_model(options.folder), load_codec(options.folder)
    model = model.to(options.device, "float32" if options.weights else options.dtype)
    prompts = list(options.prompt) + [_text_of(path) for path in options.prompt_file]
    goes_on = options.state is not None and options.state.is_file()
    if not prompts and not goes_on:
        prompts = ["\n"]
    ids = encode_prompts(prompts, codec)  # before kernels are compiled: the library of the tokens may be missing
    _load_kernels(model, options)
    start = time.perf_counter()
    generation = _begin(model, ids, options, goes_on)
    ready = time.perf_counter()
    signal = None
    if options.state is None or options.keep_state:
        tokens = _print_texts(generation, codec, prompts, options)
    else:
        with DeferredInterrupt(ON_SIGNAL) as interrupt:
            tokens = _print_texts(generation, codec, prompts, options, lambda: interrupt.requested)
            save_generation(options.state, generation)
        signal = interrupt.signal
    reading, writing = ready - start, time.perf_counter() - ready
    print(_speed(codec, sum(map(len, ids)), reading, tokens, generation.batch, writing), file=sys.stderr)
    return signal


def _load_kernels(model: RAMNet, options: GenerateOptions) -> None:
    """Compile or load what a pass and a step launch, so that the speeds are those of the model."""
    ids = namespace_of(*model.params.values()).zeros((1, 2), dtype=int)
    generation = Generation(model, ids, memory=options.memory.tiers(), weights=options.weights)
    for _ in range(2):
        generation.next(Sampling())


def _begin(model: RAMNet, prompts: list[NDArray[np.int32]], options: GenerateOptions, goes_on: bool) -> Generation:
    """The sequences with their prompts, given as tokens, read."""
    xp = namespace_of(*model.params.values())
    ids = [xp.asarray(one) for one in prompts]
    if not goes_on:
        return Generation(model, ids, memory=options.memory.tiers(), weights=options.weights)
    assert options.state is not None  # there is one to go on from
    generation = load_generation(options.state, model, memory=options.memory.tiers(), weights=options.weights)
    if ids and len(ids) != generation.batch:
        raise ValueError(
            f"prompt must be given never, or once for each text of state ({generation.batch}), got {len(ids)}"
        )
    if ids:
        generation.read(ids)
    return generation


def _print_texts(
    generation: Generation,
    codec: Codec,
    prompts: list[str],
    options: GenerateOptions,
    ends: Callable[[], bool] = lambda: False,
) -> int:
    """Print every text, until ``ends`` says to end it; returns the tokens that each took."""
    starts = [prompt_bytes(prompt).decode(errors="replace") for prompt in prompts] or [""] * generation.batch
    several, others, steps = len(starts) > 1, [""] * len(starts), -1
    for steps, pieces in enumerate(write(generation, options.length, options.sampling, codec, options.stop, ends)):
        if steps == 0:
            print(f"--- 1 ---\n{starts[0]}" if several else starts[0], end="")
        print(pieces[0], end="", flush=True)
        others = [text + piece for text, piece in zip(others, pieces, strict=True)]
    print()
    for number, (prompt, text) in enumerate(zip(starts[1:], others[1:], strict=True), 2):
        print(f"--- {number} ---\n{prompt}{text}")
    return steps


def _speed(codec: Codec, read: int, reading: float, tokens: int, batch: int, writing: float) -> str:
    """How fast, in words: ``read`` tokens of prompts, then ``tokens`` for each of ``batch`` texts; times in seconds."""
    parts = []
    if read:
        parts.append(f"read {_rate(codec, read, reading)}")
    if tokens:
        each = f", {batch} texts side by side" if batch > 1 else ""
        parts.append(f"wrote {_rate(codec, tokens * batch, writing)}{each}")
    return "; ".join(parts) or "nothing to read or write"


def _rate(codec: Codec, tokens: int, seconds: float) -> str:
    return f"{tokens:,} {codec.unit}{'s' * (tokens != 1)} in {seconds:.2f} s ({tokens / seconds:,.0f}/s)"


def _text_of(path: Path) -> str:
    """What a file holds; bytes that are no UTF-8 stay what they are."""
    if not path.is_file():
        raise FileNotFoundError(f"prompt_file must be a file, got {str(path)!r}, which is {_what(path)}")
    try:
        text = path.read_bytes().decode("utf-8", errors="surrogateescape")
    except OSError as error:
        raise OSError(f"prompt_file {str(path)!r} could not be read: {why(error)}") from error
    if not text:
        raise ValueError(f"prompt_file must hold at least one character, got {str(path)!r}, which is empty")
    return text


def _require_new_file(path: Path, keep: bool) -> None:
    if keep:
        raise FileNotFoundError(f"state must be a file to go on from, got {str(path)!r}, which is {_what(path)}")
    if path.exists():
        raise ValueError(f"state must be a file, got {str(path)!r}, which is {_what(path)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"state must lie in a folder that exists, got {str(path)!r}")


def _what(path: Path) -> str:
    return "a folder" if path.is_dir() else "no regular file" if path.exists() else "not there"
