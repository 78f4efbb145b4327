"""The language model: embeddings, blocks, a last norm, the head.

x      = embeddings[ids]
x      = block_i(x)                  i = 0 .. layers - 1
logits = norm(x) E^T                 E: the embeddings again if tied, else a matrix of its own
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np

from ramnet_np.backend import array_kind
from ramnet_np.contract import Address, Array
from ramnet_np.core.arrays import gpu_namespace, namespace_of, on_host
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import require_context, require_like
from ramnet_np.layers.linear import linear_backward, linear_forward
from ramnet_np.model.block import initial_block_state
from ramnet_np.model.call_checks import check_ids, check_select, check_state_memory, check_states, checked_options
from ramnet_np.model.checks import check_choice, check_integer
from ramnet_np.model.config import RAMNetConfig, of_layer
from ramnet_np.model.count import describe
from ramnet_np.model.generation import tokens, with_tokens, without_padding
from ramnet_np.model.hidden import NetworkContext, hidden_backward, hidden_forward
from ramnet_np.model.layout import EMBEDDINGS, HEAD, float_dtype, model_parameters, require_parameters
from ramnet_np.model.memory import parameter_bytes, require_memory
from ramnet_np.model.mixers import CallOptions
from ramnet_np.model.mixers.interface import Recompute
from ramnet_np.model.parameters import Params, init_parameters
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.tracing import trace

Device = Literal["cpu", "gpu"]


class RAMNet:
    """A language model of RAM layers, or of another ``config.mixer``.

    ``params`` holds its arrays by the names of the authors' checkpoints.

    ``config``: its sizes and choices; ``seed``: of the initial values; ``dtype``: float32 or float64;
    ``params``: use these arrays instead of initial values (CuPy arrays make a model that runs on the GPU).

    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> logits, ctx = model.forward(np.array([[1, 2, 3]]))
    >>> logits.shape
    (1, 3, 16)
    >>> grads = model.backward(np.ones_like(logits), ctx)
    >>> grads.keys() == model.params.keys()
    True
    """

    def __init__(self, config: RAMNetConfig, seed: int = 0, dtype: Any = np.float32, *, params: Params | None = None):
        if not isinstance(config, RAMNetConfig):
            raise TypeError(f"config must be a RAMNetConfig, as preset(name) returns it, got {config!r}")
        dtype = float_dtype(dtype, on_gpu=False)
        check_integer("seed", seed, 0, None)
        if params is None:
            require_memory(parameter_bytes(config, np.dtype(dtype).itemsize), "a model of this size")
            params = init_parameters(model_parameters(config), seed, dtype)
        else:
            require_parameters(params, config)
        self.config = config
        self.params = params

    def __repr__(self) -> str:
        parameter = self.params[EMBEDDINGS]
        return describe(self.config, str(parameter.dtype), "GPU" if array_kind(parameter) == "cupy" else "CPU")

    @on_gpu_of_arrays
    def forward(
        self,
        ids: Array,
        *,
        mask: Array | None = None,
        select: Array | None = None,
        positions: Array | None = None,
        state: Sequence[Any] | None = None,
        cu_seqlens: Array | None = None,
        backend: str | None = None,
        recompute: Recompute = "none",
    ) -> tuple[Array, NetworkContext]:
        """Logits of the next token after each one. Returns (logits, ctx).

        ``ids``: (B, T) integers in [0, vocab).
        ``mask``: (B, T) bool; where False a token is not there for the others, as in a left-padded batch.
        ``select``: compute logits at N tokens only, (N, V): either (B, T) bool, then in the order of the rows, or
            (N,) distinct integers below B*T, b*T + t for token t of row b. Training asks for the labelled ones: the
            head is the largest matrix of a small model.
        ``positions``: (T,) or (B, T) integers, for CAPE and rotary positions; None counts from 0, masked tokens too.
        ``state``: what :meth:`forward_with_state` returned, per layer a RAMState (or what another mixer remembers,
            as its module in :mod:`~ramnet_np.model.mixers` says), to start from; it is left alone.
        ``cu_seqlens``: (N + 1,) integers, the offsets of N sequences that are packed into one row (B = 1): none sees
            another, and positions count from 0 in each. With it, or a mask, mixer "ram" alone takes a state, of N rows.
        ``recompute``: what the backward computes again in place of the forward keeping it, to the same bits: "ffn", the
            feed-forward networks; "block", everything but the input of each block; "none".
        """
        check_choice("recompute", recompute, Recompute)
        options = CallOptions(positions, mask, backend, recompute=recompute, cu_seqlens=cu_seqlens)
        logits, _, ctx = self._run(ids, select, state, options)
        return logits, ctx

    @on_gpu_of_arrays
    def forward_with_state(
        self,
        ids: Array,
        state: Sequence[Any] | None = None,
        *,
        mask: Array | None = None,
        select: Array | None = None,
        positions: Array | None = None,
        cu_seqlens: Array | None = None,
        backend: str | None = None,
    ) -> tuple[Array, list[Any]]:
        """As :meth:`forward`, for a sequence that comes in pieces. Returns (logits, state after the last token).

        Pass the state and the positions on: piece by piece gives what the whole sequence at once would give.
        MemoryError where a state of all slots does not fit.

        >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
        >>> _, state = model.forward_with_state(np.array([[1, 2]]))
        >>> last, state = model.forward_with_state(np.array([[3]]), state, positions=np.array([2]))
        >>> np.allclose(last[:, 0], model.forward(np.array([[1, 2, 3]]))[0][:, 2])
        True
        """
        # nothing is kept for a backward; with "block" that is dropped layer by layer
        options = CallOptions(positions, mask, backend, return_state=True, recompute="block", cu_seqlens=cu_seqlens)
        logits, states, _ = self._run(ids, select, state, options)
        return logits, states

    @on_gpu_of_arrays
    def forward_hidden(
        self,
        ids: Array,
        state: Sequence[Any] | None = None,
        *,
        select: Array | None = None,
        positions: Array | None = None,
        cu_seqlens: Array | None = None,
        backend: str | None = None,
        recompute: Recompute = "none",
    ) -> tuple[Array, list[Any], NetworkContext]:
        """What the head turns into logits, (B, T, D) or (N, D): the last block's output behind the norm.

        Returns it, the state after the last token (a list of None unless ``state`` is given) and ctx for
        :meth:`backward_hidden`. Arguments as of :meth:`forward`. With "block" in ``recompute``, ``state`` must stay as
        it is until the backward has run. For training: see :mod:`ramnet_np.layers.head_loss`.

        >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
        >>> ids = np.array([[1, 2]])
        >>> x, state, ctx = model.forward_hidden(ids, model.initial_state(1), positions=np.array([0, 1]))
        >>> x.shape, state[0].slots.shape
        ((1, 2, 8), (1, 2, 16, 4))
        """
        check_choice("recompute", recompute, Recompute)
        options = CallOptions(positions, None, backend, state is not None, recompute=recompute, cu_seqlens=cu_seqlens)
        return self._hidden(ids, select, state, options)

    @on_gpu_of_arrays
    def initial_state(self, batch: int) -> list[Any]:
        """The state of every layer before the first token of ``batch`` sequences; every later one has its shapes.

        ValueError for a mixer whose state takes shape with its tokens, as keys and values do.

        >>> state = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0).initial_state(3)
        >>> state[0].slots.shape
        (3, 2, 16, 4)
        """
        check_integer("batch", batch, 1)
        check_state_memory(self.config, batch, 1, self.params[EMBEDDINGS])
        like = namespace_of(self.params[EMBEDDINGS]).empty((batch, 1, self.config.width), self.params[EMBEDDINGS].dtype)
        return [initial_block_state(of_layer(self.config, i), like) for i in range(self.config.layers)]

    @on_gpu_of_arrays
    def step(self, ids: Array, state: list[Any], positions: Array, *, backend: str | None = None) -> Array:
        """Logits (B, 1, V) after one more token: UPDATES ``state`` IN PLACE.

        ``ids``: (B, 1); ``positions``: (1,) or (B, 1), where that token is. ``state``: the list that
        :meth:`forward_with_state` returned; slots change where they are, other memories are replaced in the list.
        ValueError or TypeError for more tokens than one, without a state, or with one that does not fit; then nothing
        has changed. (Logits that are not finite are found in the layer that makes them: those before it have then taken
        the token.)

        >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
        >>> _, state = model.forward_with_state(np.array([[1, 2]]))
        >>> model.step(np.array([[3]]), state, np.array([2])).shape
        (1, 1, 16)
        """
        if not isinstance(state, list) or any(memory is None for memory in state):
            raise ValueError(f"state must be the list that forward_with_state returned, got {str(state)[:40]}")
        if getattr(ids, "ndim", None) == 2 and ids.shape[1] != 1:
            raise ValueError(f"ids must have shape (B, 1) in a step, got {ids.shape}")
        check_ids(ids, self.config.vocab, self.params[EMBEDDINGS])
        # all states before any changes
        check_states(state, self.config, ids.shape[0], positions, self.params[EMBEDDINGS])
        return self.step_checked(ids, state, positions, backend=backend)

    @on_gpu_of_arrays
    def step_checked(self, ids: Array, state: list[Any], positions: Array, *, backend: str | None = None) -> Array:
        """As :meth:`step`, for a state that one was already made from: it is not looked at again.

        >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
        >>> model.step_checked(np.array([[3]]), model.initial_state(1), np.array([0])).shape
        (1, 1, 16)
        """
        logits, states, _ = self._run(ids, None, state, CallOptions(positions, None, backend, in_place=True))
        if any(new is not old for new, old in zip(states, state, strict=True)):
            state[:] = states
        return logits

    @on_gpu_of_arrays
    def backward(self, dlogits: Array, ctx: NetworkContext) -> Params:
        """The gradient of every parameter, by name, given that of the logits. A given state is taken as constant."""
        require_context(ctx, NetworkContext, "RAMNet.forward")
        if ctx.head is None:
            raise ValueError("ctx must be of RAMNet.forward, got one of forward_hidden, which backward_hidden takes")
        require_like("dlogits", dlogits, ctx.head.y)
        # 4. logits = norm(x) E^T
        dx, dhead, _ = linear_backward(dlogits, ctx.head)
        return self.backward_hidden(dx, dhead, ctx)

    @on_gpu_of_arrays
    def backward_hidden(self, dx: Array, dhead: Array, ctx: NetworkContext) -> Params:
        """As :meth:`backward`, given the gradients of what :meth:`forward_hidden` returned and of the head's weight."""
        grads: Params = {}
        for some in self.backward_in_order(dx, dhead, ctx):
            grads |= some
        return {name: grads[name] for name in self.params}

    def backward_in_order(self, dx: Array, dhead: Array, ctx: NetworkContext) -> Iterator[Params]:
        """The gradients of :meth:`backward_hidden`, some after the others as they are made: last block first.

        What becomes of them meanwhile, such as their sum over several processes, may run beside the rest. The GPU of
        the model must be the current one.

        >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=2, order=2, ffn="none"), seed=0)
        >>> x, _, ctx = model.forward_hidden(np.array([[1, 2]]))
        >>> order = [min(grads) for grads in model.backward_in_order(x, np.zeros((16, 8), np.float32), ctx)]
        >>> order[0], order[1].partition(".attn")[0], order[-1]
        ('model.norm.weight', 'model.layers.1', 'model.embeddings.weight')
        """
        require_context(ctx, NetworkContext, "RAMNet.forward_hidden")
        return hidden_backward(dx, dhead, ctx, self.config)

    @property
    def head(self) -> Array:
        """The head's weight, (V, D): the embedding table if that is tied to it."""
        return self.params[EMBEDDINGS if self.config.tie_embeddings else HEAD]

    @on_gpu_of_arrays
    def generate(
        self,
        ids: Array | Sequence[Array],
        length: int,
        *,
        mask: Array | None = None,
        backend: str | None = None,
        **sampling: Any,
    ) -> Array | list[Array]:
        """Continue each row of ``ids`` by ``length`` tokens; returns (B, T + length).

        ``ids``: (B, T), or a list of prompts (T,) of any lengths: then a list of arrays is returned.
        ``mask``: (B, T) bool, False where a token is no part of its prompt, as the padding before a short one.
        ``sampling``: how tokens are chosen, fields of :class:`~ramnet_np.model.sampling.Sampling`; without any the
        likeliest is taken.
        The prompt runs at once; every further token is one step, whose cost grows with the context only with mixer
        "softmax".
        ValueError or TypeError, naming the argument, before anything is computed.

        >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
        >>> model.generate(np.array([[1, 2, 3]]), 2).shape
        (1, 5)
        >>> ragged = model.generate([np.array([1, 2, 3]), np.array([4])], 2, temperature=0.8, top_p=0.9)
        >>> [row.shape for row in ragged]
        [(5,), (3,)]
        """
        return with_tokens(ids, list(self.stream(ids, length, mask=mask, backend=backend, **sampling)))

    def stream(
        self,
        ids: Array | Sequence[Array],
        length: int,
        *,
        mask: Array | None = None,
        backend: str | None = None,
        **sampling: Any,
    ) -> Iterator[Array]:
        """The tokens of :meth:`generate` one after the other, as they are made: (B,) each, of the dtype of ``ids``.

        Where that dtype does not hold the vocabulary, they are of the next wider one that does.
        FloatingPointError for logits that are not finite. On a GPU, which is not waited for, the token is -1 instead;
        in an unsigned dtype that is its largest number.
        :class:`~ramnet_np.model.generation.Generation` can be stopped, saved and gone on with.

        >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
        >>> ids = np.array([[1, 2, 3]])
        >>> [token.shape for token in model.stream(ids, 2)]
        [(1,), (1,)]
        """
        return tokens(self, ids if mask is None else without_padding(ids, mask), length, Sampling(**sampling), backend)

    @on_gpu_of_arrays
    def trace(
        self,
        ids: Array,
        *,
        mask: Array | None = None,
        positions: Array | None = None,
        state: Sequence[Any] | None = None,
        cu_seqlens: Array | None = None,
        backend: str | None = None,
    ) -> list[dict[str, Address]]:
        """Which slots tokens write and read: per layer {"write": Address, "read": Address}, (B, T, H, K), or {}.

        >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
        >>> model.trace(np.array([[1, 2, 3]]))[0]["write"].index.shape
        (1, 3, 2, 8)
        """
        return trace(self.params, self.config, ids, CallOptions(positions, mask, backend, cu_seqlens=cu_seqlens), state)

    def to(self, device: Device, dtype: Any = None) -> RAMNet:
        """The model on ``device``, "cpu" or "gpu", in ``dtype``: itself if it is so already, else with copies.

        ``dtype``: "float32", "float64", and on a GPU "bfloat16" and "float16", which take half of the memory and of
        the time; None keeps it.
        RuntimeError, with the reason, where there is no GPU to use; MemoryError where the model does not fit on it.

        >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
        >>> model.to("cpu") is model
        True
        """
        if device not in get_args(Device):
            raise ValueError(f"device must be one of {', '.join(map(repr, get_args(Device)))}, got {device!r}")
        here = self.params[EMBEDDINGS]
        dtype = here.dtype if dtype is None else float_dtype(dtype, on_gpu=device == "gpu")
        if device == ("gpu" if array_kind(here) == "cupy" else "cpu") and dtype == here.dtype:
            return self
        if device == "cpu":
            return RAMNet(self.config, params={name: on_host(p).astype(dtype) for name, p in self.params.items()})
        xp = gpu_namespace()
        require_memory(sum(p.size * dtype.itemsize for p in self.params.values()), "this model", "gpu")
        return RAMNet(self.config, params={name: xp.asarray(p).astype(dtype) for name, p in self.params.items()})

    def num_parameters(self) -> int:
        """Numbers that training may change; a tied head counts once.

        >>> RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2, ffn="none"), seed=0).num_parameters()
        568
        """
        return sum(p.size for p in self.params.values())

    def save_pretrained(self, folder: str | PathLike[str], dtype: Literal["bfloat16"] | None = None) -> None:
        """Write ``model.safetensors`` and ``config.json`` into ``folder``, in the authors' format.

        ``dtype``: "bfloat16" rounds the parameters to 16 bits: half of the bytes, which load as float32.
        """
        from ramnet_np.model.checkpoint import save_model  # a model runs where safetensors is missing

        save_model(folder, self.config, self.params, dtype)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> RAMNet:
        """The model that ``folder`` holds: one of ours, or a checkpoint of the authors' package."""
        from ramnet_np.model.checkpoint import load_model

        config, params = load_model(folder)
        return cls(config, params=params)

    def _run(
        self, ids: Array, select: Array | None, state: Sequence[Any] | None, options: CallOptions
    ) -> tuple[Array, list[Any], NetworkContext]:
        """Returns the logits, the state of every layer (None where not asked for) and ctx."""
        x, states, ctx = self._hidden(ids, select, state, options)
        logits, head_ctx = linear_forward(x, self.head)
        return logits, states, ctx._replace(head=head_ctx)

    def _hidden(
        self, ids: Array, select: Array | None, state: Sequence[Any] | None, options: CallOptions
    ) -> tuple[Array, list[Any], NetworkContext]:
        """Checks, then what :func:`~ramnet_np.model.hidden.hidden_forward` returns."""
        config = self.config
        check_ids(ids, config.vocab, self.params[EMBEDDINGS])
        options = checked_options(config, options, ids, state, self.params[EMBEDDINGS])
        if select is not None:
            select = check_select(select, ids)
        return hidden_forward(self.params, config, ids, select, state, options)
