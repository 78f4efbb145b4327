"""Generation: prompts in parallel passes, then one token after another, each chosen from the logits after those before.

Prompts may have different lengths. Those of one length are read together; then all whose states have one shape step
together, which are all of them with every memory of a fixed size. On a GPU these choose a token ahead: ahead.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ramnet_np.backend import array_kind, backend_for
from ramnet_np.contract import Array, MemoryTiers
from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.core.checks import check_mask
from ramnet_np.core.cuda_graph import Graphs
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import require_ids
from ramnet_np.core.sparse_checks import check_tiers
from ramnet_np.layers.sampling import mark_seen
from ramnet_np.layers.uniform import row_seeds, uniform
from ramnet_np.model.ahead import TokensAhead
from ramnet_np.model.checks import check_choice, check_integer
from ramnet_np.model.sampling import Sampling, check_sampling, next_token, require_tokens, token_dtype
from ramnet_np.model.settled import Weights, settled
from ramnet_np.model.sparse import sparse_state
from ramnet_np.model.states import alike, with_whole_windows
from ramnet_np.model.stepping import Standing, Stepper, read, together


class Generation:
    """Sequences that a model continues.

    ``model``: a RAMNet, whose parameters must stay as they are; ``ids``: prompts, arrays of integers (T,), one for each
    sequence, or an array (B, T); ``backend``: of the operation; ``standing``: instead of prompts, where to go on;
    ``memory``: keep touched slots only, in these tiers; None for states of all slots.
    ``weights``: "bfloat16" holds the matrices of a model in float32 on the CPU in 16 bits, as half the bytes are read
    sooner; see :func:`~ramnet_np.model.settled.settled`. For a GPU there is ``model.to("gpu", "bfloat16")``.
    ``graphs``: on a GPU, whether a token is captured as a CUDA graph: "on" raises RuntimeError where that fails, "auto"
    then warns and goes on without; sequences that cannot step together do without.
    ValueError or TypeError, naming the argument, for a prompt that is empty or has a token outside the vocabulary.
    A call that fails or is interrupted once it computes leaves the sequences half written: every later one says so.

    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> generation = Generation(model, [np.array([1, 2, 3]), np.array([4])])
    >>> generation.next(Sampling(temperature=1.0)).shape, generation.standing().positions.tolist()
    ((2,), [4, 2])
    """

    @on_gpu_of_arrays
    def __init__(
        self,
        model: Any,
        ids: Sequence[Array] | Array = (),
        *,
        backend: str | None = None,
        standing: Standing | None = None,
        graphs: Graphs = "auto",
        memory: MemoryTiers | None = None,
        weights: Weights | None = None,
    ):
        check_choice("graphs", graphs, Graphs)
        if memory is not None:
            check_tiers(memory)
        self.model, self._settled, self._backend, self._graphs = model, settled(model, weights), backend, graphs
        self._memory = memory
        self._chosen: Array = None  # tokens (B,) that the state does not hold yet
        self._ahead: TokensAhead | None = None  # on a GPU: its state holds the tokens before anyone has seen them
        self._lost = ""
        if standing is not None:
            if backend is not None:
                backend_for(standing.logits, backend)  # before a token needs it
            self._now = standing
            for stepper in standing.steppers:
                stepper.model, stepper.backend = self._settled, backend
        else:
            self._require_prompts(ids, None)
            self._begin(ids)

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return len(self._now.positions)

    @property
    def params(self) -> Any:
        """The parameters of the model: they say on which GPU a call runs."""
        return self.model.params

    @on_gpu_of_arrays
    def next(self, sampling: Sampling) -> Array:
        """One more token of every sequence, (B,) int64.

        FloatingPointError for logits that are not finite. On a GPU, which is not waited for, the token is -1 instead.
        """
        check_sampling(sampling)
        with self._whole_or_lost():
            if ahead := self._tokens_ahead():
                return ahead.next(sampling)
            now = self._taken_in()
            u = None
            if not sampling.greedy:
                u = uniform(row_seeds(sampling.seed, self.batch, now.logits), now.positions)
            token = next_token(now.logits, sampling, u, now.seen)
            mark_seen(now.seen, token)
            self._chosen = token
            return token

    @on_gpu_of_arrays
    def next_on_host(self, sampling: Sampling) -> np.ndarray:
        """As :meth:`next`, as a NumPy array; a GPU is at the next step while the caller looks at it.

        FloatingPointError for logits that are not finite.
        """
        check_sampling(sampling)
        with self._whole_or_lost():
            if ahead := self._tokens_ahead():
                return require_tokens(ahead.next_on_host(sampling))
            return require_tokens(on_host(self.next(sampling)))

    @on_gpu_of_arrays
    def standing(self) -> Standing:
        """Where the sequences stand, with the tokens that were chosen last taken into the state.

        The next token may change these arrays.
        """
        with self._whole_or_lost():
            return self._taken_in()

    def _taken_in(self) -> Standing:
        if self._ahead is not None:
            self._ahead.forget()
        elif self._chosen is not None:
            token, self._chosen, now = self._chosen, None, self._now
            logits = self._step(token)
            self._now = now._replace(logits=logits, positions=now.positions + 1)
        return self._now

    @on_gpu_of_arrays
    def read(self, ids: Sequence[Array] | Array) -> None:
        """Append a prompt to every sequence, as if it had been written there.

        ``ids``: as of the class, one for each sequence.
        """
        self._require_prompts(ids, self.batch)
        with self._whole_or_lost():
            now = self._taken_in()
            steppers: dict[tuple[int, ...], Stepper | None] = {}
            for stepper in now.steppers:
                lengths = [len(ids[row]) for row in stepper.rows]
                for length in sorted(set(lengths)):
                    part = stepper.some([place for place, other in enumerate(lengths) if other == length])
                    steppers[tuple(part.rows.tolist())] = part
            self._now, self._ahead = self._read(ids, steppers, now.positions, now.seen), None

    @contextmanager
    def _whole_or_lost(self) -> Iterator[None]:
        """What fails on the way, or is interrupted, may leave layers that have taken a token and others that have not:
        every later use then says so."""
        if self._lost:
            raise ValueError(f"generation must be whole, got one that was ended by {self._lost}; begin it again")
        try:
            yield
        except BaseException as error:
            self._lost = f"{type(error).__name__} {' '.join(str(error).split())}".strip()
            raise

    def _tokens_ahead(self) -> TokensAhead | None:
        """What chooses tokens ahead, if the sequences are on a GPU and all step together."""
        if self._ahead is None and array_kind(self._now.logits) == "cupy" and self._step_together():
            self._ahead = TokensAhead(self._now, self._graphs)
        return self._ahead

    def _step_together(self) -> bool:
        steppers = self._now.steppers
        return len(steppers) == 1 and bool((steppers[0].rows[1:] > steppers[0].rows[:-1]).all())

    def _begin(self, prompts: Sequence[Array] | Array) -> None:
        xp, B = namespace_of(*self.model.params.values()), len(prompts)
        by_length: dict[int, list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            by_length[len(prompt)].append(row)
        groups: dict[tuple[int, ...], Stepper | None] = {tuple(rows): None for _, rows in sorted(by_length.items())}
        seen = xp.zeros((B, self.model.config.vocab), dtype=bool)
        self._now = self._read(prompts, groups, xp.zeros(B, dtype=np.int64), seen)

    def _read(
        self, prompts: Sequence[Array], groups: dict[tuple[int, ...], Stepper | None], positions: Array, seen: Array
    ) -> Standing:
        """Read the prompts of each group of rows, all of one length; then let those step together that can."""
        xp, width = namespace_of(positions), self.model.config.short_conv
        logits: Array = None
        positions, seen, steppers = positions.copy(), seen.copy(), []
        for rows, before in groups.items():
            at = list(rows)
            ids = xp.stack([prompts[row] for row in rows])
            where, state = (None, None) if before is None else (positions[at], before.state)
            if before is None and self._memory is not None:
                where, state = positions[at], sparse_state(self._settled, len(at), self._memory)
            stepper, after = read(self._settled, ids, np.array(rows), where, state, self._backend)
            stepper.state = with_whole_windows(stepper.state, width)
            logits = xp.empty((len(positions), after.shape[1]), dtype=after.dtype) if logits is None else logits
            logits[at] = after
            positions[at] += ids.shape[1]
            seen[xp.array(at)[:, None], ids] = True
            steppers.append(stepper)
        return Standing(_joined(steppers), logits, positions, seen)

    def _step(self, token: Array) -> Array:
        steppers, positions = self._now.steppers, self._now.positions
        if self._step_together():
            return steppers[0].step(token, positions)
        logits = namespace_of(token).empty_like(self._now.logits)
        for stepper in steppers:
            rows = stepper.rows.tolist()
            logits[rows] = stepper.step(token[rows], positions[rows])
        return logits

    def _require_prompts(self, prompts: Sequence[Array] | Array, batch: int | None) -> None:
        vocab, params = self.model.config.vocab, self.model.params
        shape = getattr(prompts, "shape", None)
        if shape is not None and (len(shape) != 2 or 0 in shape):
            raise ValueError(f"ids must have shape (B, T) with at least one token, got {shape}")
        if len(prompts) == 0:
            raise ValueError("ids must hold at least one sequence, got none")
        if batch is not None and len(prompts) != batch:
            raise ValueError(f"ids must be one for each sequence ({batch}), got {len(prompts)}")
        for row, prompt in enumerate(prompts):
            require_ids(f"ids[{row}]", prompt, vocab)
            if namespace_of(prompt, next(iter(params.values()))) is not np:  # both on one device
                require_ids(f"ids[{row}]", on_host(prompt), vocab)  # its range: a prompt is worth waiting for
            if prompt.ndim != 1 or prompt.size == 0:
                raise ValueError(f"ids[{row}] must have shape (T,) with at least one token, got {prompt.shape}")


def tokens(
    model: Any, ids: Sequence[Array] | Array, length: int, sampling: Sampling, backend: str | None = None
) -> Iterator[Array]:
    """``length`` tokens (B,) of every sequence, each yielded as soon as it is chosen; arguments as of Generation.

    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> [token.shape for token in tokens(model, np.array([[1, 2, 3]]), 2, Sampling())]
    [(1,), (1,)]
    """
    check_integer("length", length, 0)
    generation = Generation(model, ids, backend=backend)
    dtype = token_dtype(ids[0].dtype, model.config.vocab)
    return (_converted(generation.next(sampling), dtype) for _ in range(length))


@on_gpu_of_arrays
def without_padding(ids: Array, mask: Array) -> list[Array]:
    """The prompts of a padded batch: of every row of ``ids`` (B, T) the tokens where ``mask`` (B, T) is True.

    ValueError or TypeError for a mask that does not fit, or that leaves nothing of a row.

    >>> [row.tolist() for row in without_padding(np.array([[0, 5], [6, 7]]), np.array([[False, True], [True, True]]))]
    [[5], [6, 7]]
    """
    shape = getattr(ids, "shape", None)
    if shape is None or len(shape) != 2:
        raise ValueError(f"ids must have shape (B, T) with a mask, got {shape or 'a list of prompts'}")
    check_mask(mask, shape, array_kind(ids))
    prompts = [row[kept] for row, kept in zip(ids, mask, strict=True)]
    for row, prompt in enumerate(prompts):
        if not prompt.size:
            raise ValueError(f"mask must leave a token of every row, got none in row {row}")
    return prompts


@on_gpu_of_arrays
def with_tokens(ids: Sequence[Array] | Array, tokens: Sequence[Array]) -> Array | list[Array]:
    """The prompts with the tokens (B,) behind them: (B, T + length), or a list as ``ids`` is one.

    >>> with_tokens(np.array([[1, 2]]), [np.array([3])]).tolist()
    [[1, 2, 3]]
    """
    xp = namespace_of(*ids, *tokens)
    added = xp.stack(tokens, axis=1) if tokens else xp.empty((len(ids), 0), dtype=ids[0].dtype)
    if hasattr(ids, "ndim"):
        return xp.concatenate([ids, added], axis=1)
    return [xp.concatenate([prompt, new]) for prompt, new in zip(ids, added, strict=True)]


@on_gpu_of_arrays
def _converted(token: Array, dtype: np.dtype) -> Array:
    return token.astype(dtype)


def _joined(steppers: list[Stepper]) -> list[Stepper]:
    """As few steppers as the shapes of the states allow, with the rows of each in order."""
    groups: list[list[Stepper]] = []
    for stepper in steppers:
        fitting = [group for group in groups if alike(group[0].state, stepper.state)]
        if fitting:
            fitting[0].append(stepper)
        else:
            groups.append([stepper])
    return [_in_order(together(group)) for group in groups]


def _in_order(stepper: Stepper) -> Stepper:
    order = np.argsort(stepper.rows)
    return stepper if (order[1:] > order[:-1]).all() else stepper.some(order.tolist())
