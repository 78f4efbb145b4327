"""The operation on JAX's arrays: the library's own results, JAX's own check of gradients, inside jit.

A CPU build of JAX is enough (``pip install 'ramnet-np[jax]'``).
"""

import importlib
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from ramnet_np import RAMState, ram_attention_backward, ram_attention_forward

jax = pytest.importorskip("jax", reason="JAX is not installed")
bridge = importlib.import_module("ramnet_np.bridges.jax")
jnp = jax.numpy

B, T, H, U, P, C = 1, 4, 2, 3, 2, 2
M = P**U
OPTIONS = {
    "plain": {"top_k": 4},
    "gsu": {"update": "gsu", "top_k": (3, 5), "renorm": (True, False)},
    "cape, mass": {"cape_heads": 1, "mass_aware": True, "eps": 1e-3, "top_k": 4},
}


@pytest.fixture(autouse=True)
def _float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def draw(dtype=np.float64):
    rng = np.random.default_rng(0)
    arrays = [
        *rng.normal(size=(2, B, T, H, U, P)), rng.normal(size=(B, T, H, C)), rng.uniform(0.2, 1.5, size=(B, T, H)),
        rng.normal(size=(B, H, M, C)), rng.uniform(0.1, 1.0, size=(B, H, M)),
    ]  # fmt: skip
    return [a.astype(dtype) for a in arrays]


def where_and_mask():
    return {"positions": np.arange(7, 7 + T), "mask": np.array([[True, True, False, True]])}


def attend(write, read, values, gamma, slots=None, mass=None, **options):
    state = None if slots is None else RAMState(slots, mass)
    return bridge.ram_attention(write, read, values, gamma, state=state, backend="numpy", **options)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("given_state", [False, True])
def test_gradients_inside_jit_agree_with_finite_differences(name, given_state):
    function = jax.jit(partial(attend, **OPTIONS[name], **where_and_mask()))
    arrays = tuple(map(jnp.asarray, draw()[: 6 if given_state else 4]))
    from jax.test_util import check_grads

    check_grads(function, arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_gradient_of_one_gamma_for_all():
    from jax.test_util import check_grads

    write, read, values, *_ = draw()
    check_grads(lambda gamma: attend(write, read, values, gamma)[0], (jnp.asarray(0.7),), order=1, modes=["rev"])
    expected = ram_attention_forward(write, read, values, 0.7)[0]
    np.testing.assert_allclose(attend(write, read, values, 0.7, return_state=False)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_and_gradients_are_the_librarys_to_the_bit(dtype):
    arrays, options = draw(dtype), OPTIONS["cape, mass"] | where_and_mask()

    def loss(*inputs):
        y, state = bridge.ram_attention(*inputs[:4], state=RAMState(*inputs[4:]), **options)
        return y.sum() + (state.slots**2).sum(), (y, state)

    grads, (y, state) = jax.jit(jax.grad(loss, argnums=tuple(range(6)), has_aux=True))(*arrays)
    y_, state_, ctx = ram_attention_forward(*arrays[:4], state=RAMState(*arrays[4:]), **options)
    d = ram_attention_backward(np.ones_like(y_), ctx, RAMState(2 * state_.slots, np.zeros_like(state_.mass)))
    for ours, expected in zip((y, *state, *grads), (y_, *state_, *d[:4], *d.state), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), expected, strict=True)


def test_a_batch_by_vmap_is_the_batch_itself():
    arrays = [np.concatenate([a, 0.5 * a]) for a in draw()[:4]]
    batched = jax.vmap(lambda *one: attend(*(x[None] for x in one), return_state=False)[0][0])(*arrays)
    np.testing.assert_array_equal(batched, attend(*arrays)[0])


@pytest.mark.parametrize("kind", [list, tuple])
def test_positions_may_be_a_list(kind):
    arrays, positions = draw()[:4], np.arange(7, 7 + draw()[0].shape[1])
    got, wanted = (attend(*arrays, positions=p, cape_heads=1)[0] for p in (kind(positions.tolist()), positions))
    np.testing.assert_array_equal(got, wanted)


def test_arrays_larger_than_a_callback_copies_at_once():
    rng = np.random.default_rng(0)
    write, read = rng.normal(size=(2, 1, 256, 4, 5, 4)).astype(np.float32)
    values = rng.normal(size=(1, 256, 4, 64)).astype(np.float32)
    y, _ = jax.jit(partial(bridge.ram_attention, return_state=False))(write, read, values)
    np.testing.assert_array_equal(y, ram_attention_forward(write, read, values)[0])


def test_buffers_are_read_and_filled_where_they_lie(monkeypatch):
    """The route of a GPU, with NumPy in CuPy's place: JAX has such buffers on the CPU too."""
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=SimpleNamespace, asarray=np.asarray))
    monkeypatch.setattr(bridge, "cupy_stream", lambda address: nullcontext())
    callback = bridge.buffer_callback

    def without_gpu(function, *outputs, **options):  # there is no stream
        return callback(lambda ctx, *given: function(SimpleNamespace(stream=0), *given), *outputs, **options)

    monkeypatch.setattr(bridge, "buffer_callback", without_gpu)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *given, cpu, cuda: cuda(*given))
    monkeypatch.setattr(jax, "pure_callback", None)
    function = partial(attend, **OPTIONS["cape, mass"], **where_and_mask())
    y, vjp = jax.vjp(jax.jit(function), *draw())
    grads = vjp(y)
    monkeypatch.undo()
    expected, vjp = jax.vjp(jax.jit(partial(function)), *draw())
    for ours, other in zip((y[0], *y[1], *grads), (expected[0], *expected[1], *vjp(expected)), strict=True):
        np.testing.assert_array_equal(ours, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_on_a_gpu_where_the_arrays_lie(dtype, jit):
    """The same bits as CuPy's arrays give; callbacks of NumPy play no part."""
    cupy = pytest.importorskip("cupy")
    try:
        gpu = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("JAX sees no GPU")
    options = OPTIONS["cape, mass"] | {"positions": np.arange(7, 7 + T), "mask": where_and_mask()["mask"]}
    arrays = [jax.device_put(a, gpu) for a in draw(dtype)]

    def loss(write, read, values, gamma, slots, mass):
        y, state = bridge.ram_attention(write, read, values, gamma, state=RAMState(slots, mass), **options)
        return y.sum() + (state.slots**2).sum(), (y, *state)

    (_, made), grads = jit(jax.value_and_grad(loss, argnums=tuple(range(6)), has_aux=True))(*arrays)
    assert {a.device for a in (*made, *grads)} == {gpu}
    *inputs, slots, mass = map(cupy.asarray, draw(dtype))
    on_gpu = options | {name: cupy.asarray(options[name]) for name in ("positions", "mask")}
    y, state, ctx = ram_attention_forward(*inputs, state=RAMState(slots, mass), **on_gpu)
    d = ram_attention_backward(cupy.ones_like(y), ctx, RAMState(2 * state.slots, 0 * state.mass))
    for ours, other in zip((*made, *grads), (y, *state, *d[:4], *d.state), strict=True):
        np.testing.assert_array_equal(ours, other.get())


ERRORS = [
    ({"values": [1.0]}, TypeError, "values must be an array of JAX or NumPy, got list"),
    ({"values": np.zeros((B, T, H, C), np.float32)}, TypeError, "values must have the dtype of write_logits"),
    ({"read_logits": np.zeros((B, 2, H, U, P))}, ValueError, "axis 1 (T) differs"),
    ({"write_logits": np.zeros((B, 2))}, ValueError, "write_logits must have 5 axes"),
    ({"gamma": "much"}, TypeError, "gamma must be an array of JAX or NumPy, got str"),
    ({"gamma": -1.0}, ValueError, "gamma must not be negative for update='pdma', got -1.0"),
    ({"top_k": M + 1}, ValueError, "top_k must be between 1 and the number of slots M = 8, got 9"),
    ({"mask": np.ones((B, T))}, ValueError, "mask must be bool of shape (B, T)"),
    ({"state": (1, 2)}, TypeError, "state must be a RAMState (slots, mass), got tuple"),
    ({"return_state": None}, TypeError, "return_state must be True or False, got None"),
]


@pytest.mark.parametrize(("change", "error", "sentence"), ERRORS)
def test_a_wrong_argument_ends_in_one_sentence(change, error, sentence):
    call = dict(zip(("write_logits", "read_logits", "values", "gamma"), draw()[:4], strict=True)) | {"top_k": 2}
    with pytest.raises(error) as caught:
        bridge.ram_attention(**call | change)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_numbers_end_in_an_error_that_quotes_the_sentence():
    write, read, values, gamma, *_ = draw()
    with pytest.raises(Exception, match="gamma must not be negative for update='pdma', got a minimum of"):
        jax.block_until_ready(attend(write, read, values, -gamma))


@pytest.mark.parametrize("given_state", [False, True])
def test_packed_sequences_inside_jit(given_state):
    write, read, values, gamma, slots, mass = draw()
    offsets = np.array([0, 3, 3, T], dtype=np.int32)
    state = RAMState(np.repeat(slots, 3, axis=0), np.repeat(mass, 3, axis=0)) if given_state else None

    def loss(write, read, values, gamma, offsets):
        given = None if state is None else RAMState(*map(jnp.asarray, state))
        y, final = bridge.ram_attention(write, read, values, gamma, cu_seqlens=offsets, state=given, backend="numpy")
        assert final.slots.shape == (3, H, M, C)
        return y.sum() + (final.slots**2).sum()

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(write, read, values, gamma, offsets)
    y, final, ctx = ram_attention_forward(write, read, values, gamma, cu_seqlens=offsets, state=state, backend="numpy")
    np.testing.assert_allclose(value, y.sum() + (final.slots**2).sum())
    expected = ram_attention_backward(np.ones_like(y), ctx, RAMState(2 * final.slots, 0 * final.mass))
    for grad, own in zip(grads, expected[:4], strict=True):
        np.testing.assert_array_equal(grad, own)


def test_offsets_of_a_wrong_shape_are_refused_when_traced():
    arrays = draw()[:4]
    with pytest.raises(ValueError, match=r"cu_seqlens must have shape \(N \+ 1,\) .* got shape \(1, 2\)"):
        jax.jit(lambda *a: bridge.ram_attention(*a, cu_seqlens=jnp.array([[0, T]])))(*arrays)
    with pytest.raises(TypeError, match=r"cu_seqlens must be integers, got float"):
        jax.jit(lambda *a: bridge.ram_attention(*a, cu_seqlens=jnp.array([0.0, T])))(*arrays)
