"""The products of a step: the kernels for few rows beside cuBLAS and beside the time of reading the weights.

    python -m ramnet_np.kernels.bench.few_rows
    python -m ramnet_np.kernels.bench.few_rows --preset paper-1.3b --dtype float32 --rows 1 8
    python -m ramnet_np.kernels.bench.few_rows --rows 64 256 --shapes 4

Each product runs on copies of its matrices in turn, more than the GPU's cache holds, in one CUDA graph. "few rows" has
the norm, the gate, the bias and the residual in the launch, for any number of rows, and its launches overlap like those
of a token. "cuBLAS", which the model takes for more rows than MOST_ROWS, for the head for more than 16, is the same
work with a launch for each step. The floor reads the matrices at the bandwidth of a copy. For more than 16 rows,
``--shapes`` times the next shapes of a launch by the rule that chooses one, and names each as TILES x SPLIT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tyro

from ramnet_np.contract import weights_stay
from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.layers.few_rows import normed_gated_product, normed_products, product_added
from ramnet_np.layers.linear import few_rows_product
from ramnet_np.model import RAMNetConfig, preset
from ramnet_np.model.layout import float_dtype

from ..cuda.layers import few_rows
from . import gpu_timing

BEYOND_CACHE = 2**28  # bytes of matrices in a graph
EPS = 1e-6


class Inputs(NamedTuple):
    """What a product is given beside its matrices."""

    x: Any  # (N, D)
    norm: Any  # (D,)
    add: Any  # (N, E)


class Product(NamedTuple):
    """One product of a step."""

    name: str
    shapes: tuple[tuple[int, int], ...]  # of its matrices
    call: Callable[[Inputs, tuple[Any, ...], tuple[Any, ...]], Any]  # of the matrices and their biases
    times: int  # how often a token needs it


@dataclass(frozen=True)
class Options:
    """Time the products of one token of each sequence."""

    preset: str = "paper-340m"
    """The network, of mixer "ram" with a gated feed-forward network."""
    dtype: str = "bfloat16"
    """What it computes in."""
    rows: tuple[int, ...] = (1, 16, 64, 256)
    """Sequences side by side."""
    shapes: int = 1
    """How many shapes of a launch are timed, the rule's choice first."""


def main(options: Options) -> None:
    """Print a table: microseconds of every product, and of a whole token."""
    cupy = gpu_namespace()
    config, bandwidth = preset(options.preset), gpu_timing.copy_bandwidth()
    machine = gpu_timing.machine_record(cupy)
    print(f"{machine['device']}, copy {bandwidth / 1e12:.2f} TB/s, {options.preset}, {options.dtype}; microseconds")
    print(f"{'product':<24}{'rows':>6}{'few rows':>11}{'cuBLAS':>11}{'floor':>11}")
    for rows in options.rows:
        totals = np.zeros(3)
        for product in products(config):
            figures = measure(product, rows, float_dtype(options.dtype, on_gpu=True), bandwidth)
            totals += product.times * figures
            _print(product.name, rows, figures)
            if options.shapes > 1 and rows > few_rows.ROWS and product.name != "head":
                print_shapes(product, rows, float_dtype(options.dtype, on_gpu=True), options.shapes)
        _print("all of a token", rows, totals)


def products(config: RAMNetConfig) -> list[Product]:
    """Those of a token of a network.

    >>> [(product.name, product.shapes[0]) for product in products(preset("paper-340m"))][1:4]
    [('out', (1024, 1024)), ('gate and up', (2816, 1024)), ('down', (1024, 2816))]
    """
    D, F, addresses = config.width, config.inner_width, config.heads * config.order * config.radix
    values = config.heads * config.head_channels
    return [
        Product(
            "addresses and values", ((addresses, D), (addresses, D), (values, D)),
            lambda given, weights, biases: normed_products(given.x, given.norm, EPS, weights, biases), config.layers,
        ),
        Product(
            "out", ((D, values),), lambda given, w, biases: product_added(given.x, w[0], biases[0], given.add),
            config.layers,
        ),
        Product(
            "gate and up", ((F, D), (F, D)),
            lambda given, weights, _: normed_gated_product(given.x, given.norm, EPS, *weights), config.layers,
        ),
        Product("down", ((D, F),), lambda given, w, _: product_added(given.x, w[0], None, given.add), config.layers),
        Product("head", ((config.vocab, D),), lambda given, w, _: few_rows_product(given.x, w[0]), 1),
    ]  # fmt: skip


def measure(product: Product, rows: int, dtype: np.dtype, bandwidth: float) -> np.ndarray:
    """Microseconds by the kernels for few rows, by cuBLAS, and of reading the matrices."""
    microseconds = timer(product, rows, dtype)
    with _most_rows(rows):  # also beyond where cuBLAS takes over
        ours = microseconds()
    with _most_rows(0):
        theirs = microseconds()
    return np.array([ours, theirs, 1e6 * _size(product, dtype) / bandwidth])


def print_shapes(product: Product, rows: int, dtype: np.dtype, count: int) -> None:
    """Microseconds of the shapes that the rule takes for the fastest ``count``."""
    microseconds, found = timer(product, rows, dtype), []
    for rank in range(count):
        with _most_rows(rows), _rank_of_shape(rank) as names:
            found.append(f"{microseconds():.2f} ({names[-1]})")
    print(f"  by rank of the shape: {', '.join(found)}", flush=True)


def timer(product: Product, rows: int, dtype: np.dtype) -> Callable[[], float]:
    """What times the product as it is launched when it is called: microseconds of one."""
    cupy = gpu_namespace()

    def drawn(*shape: int) -> Any:
        return cupy.random.standard_normal(shape, dtype=np.float32).astype(dtype)

    copies = [
        tuple(drawn(*shape) for shape in product.shapes) for _ in range(-(-BEYOND_CACHE // _size(product, dtype)))
    ]
    biases = tuple(drawn(E) for E, _ in product.shapes)
    E, D = product.shapes[0]
    given = Inputs(drawn(rows, D), drawn(D), drawn(rows, E))

    def microseconds() -> float:
        with weights_stay():
            replay = gpu_timing.captured(lambda: [product.call(given, matrices, biases) for matrices in copies])
        return 1e3 * gpu_timing.median_ms(replay, 20) / len(copies)

    return microseconds


def _size(product: Product, dtype: np.dtype) -> int:
    return dtype.itemsize * sum(E * D for E, D in product.shapes)


@contextmanager
def _most_rows(most: int) -> Iterator[None]:
    """Within this block cuBLAS takes products of more rows than that."""
    kept, kept_of_long = dict(few_rows.MOST_ROWS), few_rows.MOST_ROWS_OF_LONG
    few_rows.MOST_ROWS.update(dict.fromkeys(kept, most))
    few_rows.MOST_ROWS_OF_LONG = most
    try:
        yield
    finally:
        few_rows.MOST_ROWS.update(kept)
        few_rows.MOST_ROWS_OF_LONG = kept_of_long


@contextmanager
def _rank_of_shape(rank: int) -> Iterator[list[str]]:
    """Within this block launches of more than 16 rows have the shape of this rank; their names are listed."""
    module: Any = few_rows
    kept, names = module._tile_shape, []

    def chosen(*given: Any) -> Any:
        shape = kept(*given, rank=rank)
        defines = dict(shape.specialisation.defines)
        names.append(f"{defines['TILES']} x {defines['SPLIT']}")
        return shape

    module._tile_shape = chosen
    few_rows._shape.cache_clear()
    try:
        yield names
    finally:
        module._tile_shape = kept
        few_rows._shape.cache_clear()


def _print(name: str, rows: int, figures: np.ndarray) -> None:
    print(f"{name:<24}{rows:>6}" + "".join(f"{figure:>11.2f}" for figure in figures))


if __name__ == "__main__":
    main(tyro.cli(Options))
