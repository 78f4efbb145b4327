"""The operation on PyTorch's tensors: the library's own results, torch's own checks of gradients and of operators.

A CPU build of torch is enough (``pip install 'ramnet-np[torch]'``). Tensors on a GPU are tried where there is one.
"""

import gc
import importlib
import inspect
import subprocess
import sys
import warnings

import numpy as np
import pytest

from ramnet_np import RAMState, ram_attention_backward, ram_attention_forward, ram_attention_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
bridge = importlib.import_module("ramnet_np.bridges.torch")
torch_ops = importlib.import_module("ramnet_np.bridges.torch_ops")

B, T, H, U, P, C = 2, 5, 2, 3, 2, 3
M = P**U
OPTIONS = {
    "plain": {},
    "gsu": {"update": "gsu", "top_k": (3, 5), "renorm": (True, False)},
    "cape, mass": {"cape_heads": 1, "mass_aware": True, "eps": 1e-3, "top_k": 4},
    "proxy, dense": {"top_k": M, "renorm": True},
}
WITHOUT_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="this PyTorch has no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, WITHOUT_CUDA])]


def draw(dtype=torch.float64, device="cpu", T=T, seed=0):
    """Logits, values, gamma, and a state's slots and mass."""
    rng = np.random.default_rng(seed)
    arrays = [
        *rng.normal(size=(2, B, T, H, U, P)), rng.normal(size=(B, T, H, C)), rng.uniform(0.2, 1.5, size=(B, T, H)),
        rng.normal(size=(B, H, M, C)), rng.uniform(0.1, 1.0, size=(B, H, M)),
    ]  # fmt: skip
    return [torch.tensor(a, dtype=dtype, device=device) for a in arrays]


def where_and_mask(device="cpu"):
    positions = torch.arange(7, 7 + T, device=device).expand(B, T)
    mask = torch.ones(B, T, dtype=torch.bool, device=device)
    mask[1, 3] = False
    return {"positions": positions, "mask": mask}


def attend(write, read, values, gamma, slots=None, mass=None, **options):
    """All that comes out, as autograd's checks want it."""
    state = None if slots is None else RAMState(slots, mass)
    y, final = bridge.ram_attention(write, read, values, gamma, state=state, **options)
    return y if final is None else (y, *final)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("given_state", [False, True])
def test_gradients_of_every_input_agree_with_finite_differences(name, given_state):
    write, read, values, gamma, slots, mass = draw()
    inputs = [write[:1, :3], read[:1, :3], values[:1, :3, :, :2], gamma[:1, :3]]
    inputs += [slots[:1, ..., :2], mass[:1]] if given_state else []
    inputs = [x.clone().requires_grad_() for x in inputs]
    mask = torch.tensor([[True, False, True]])
    options = OPTIONS[name] | {"positions": torch.arange(7, 10), "mask": mask, "backend": "numpy"}
    assert torch.autograd.gradcheck(lambda *xs: attend(*xs, **options), inputs)


def test_gradient_of_one_gamma_for_all():
    write, read, values, *_ = (x[:1, :3] for x in draw())
    gamma = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: attend(write, read, values, g, backend="numpy"), gamma)
    expected = ram_attention_forward(write.numpy(), read.numpy(), values.numpy(), 0.7)[0]
    np.testing.assert_allclose(attend(write, read, values, gamma)[0].detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", [None, "numpy"])
def test_results_and_gradients_are_the_librarys_to_the_bit(dtype, backend):
    inputs = [x.requires_grad_() for x in draw(dtype)]
    options = OPTIONS["cape, mass"] | {"backend": backend}
    both = where_and_mask()
    y, state = bridge.ram_attention(*inputs[:4], state=RAMState(*inputs[4:]), **options, **both)
    (y.sum() + (state.slots**2).sum()).backward()

    arrays = [x.detach().numpy() for x in inputs]
    both = {name: x.numpy() for name, x in both.items()}
    y_, state_, ctx = ram_attention_forward(*arrays[:4], state=RAMState(*arrays[4:]), **options, **both)
    d = ram_attention_backward(np.ones_like(y_), ctx, RAMState(2 * state_.slots, np.zeros_like(state_.mass)))
    for ours, expected in zip((y, *state), (y_, *state_), strict=True):
        np.testing.assert_array_equal(ours.detach(), expected, strict=True)
    for x, expected in zip(inputs, (*d[:4], *d.state), strict=True):
        np.testing.assert_array_equal(x.grad, expected, strict=True)


@pytest.mark.gpu
@WITHOUT_CUDA
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_on_a_gpu_on_torchs_stream_and_from_its_memory(dtype):
    inputs = [x.requires_grad_() for x in draw(dtype, "cuda")[:4]]
    expected = [x.detach().double().cpu().requires_grad_() for x in inputs]
    before = torch.cuda.memory_allocated()
    with torch.cuda.stream(torch.cuda.Stream()):
        y, state = bridge.ram_attention(*inputs, **where_and_mask("cuda"))
        assert torch.cuda.memory_allocated() > before
        (y.float().sum() + state.mass.sum()).backward()
        torch.cuda.current_stream().synchronize()
    assert y.dtype == dtype
    assert state.mass.dtype == (dtype if dtype.itemsize >= 4 else torch.float32)
    y_, state_ = bridge.ram_attention(*expected, **where_and_mask())
    (y_.sum() + state_.mass.sum()).backward()
    rtol = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-3, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(y.double().cpu(), y_, rtol=rtol, atol=rtol)
    for x, x_ in zip(inputs, expected, strict=True):
        torch.testing.assert_close(x.grad.double().cpu(), x_.grad, rtol=rtol, atol=rtol)


ENDS = """
import torch
from ramnet_np.bridges.torch import ram_attention
logits = torch.zeros(1, 4, 2, 2, 2, device="cuda", requires_grad=True)
ram_attention(logits, logits, torch.ones(1, 4, 2, 3, device="cuda"), top_k=4)[0].sum().backward()
"""


@pytest.mark.gpu
@WITHOUT_CUDA
def test_python_ends_with_memory_of_torchs_still_in_use():
    assert subprocess.run([sys.executable, "-c", ENDS]).returncode == 0


def test_nothing_is_copied(monkeypatch):
    seen = []

    def look(*arrays, **options):
        seen.extend(a.__array_interface__["data"][0] for a in arrays)
        return ram_attention_forward(*arrays, **options)

    monkeypatch.setattr(torch_ops, "ram_attention_forward", look)
    inputs = draw()[:4]
    inputs[2] = inputs[2].transpose(0, 1).contiguous().transpose(0, 1)  # a view is read where it lies
    attend(*inputs)
    assert seen == [x.data_ptr() for x in inputs]


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("return_state", [False, True])
def test_torchs_check_of_the_operator(given_state, return_state):
    inputs = [x.requires_grad_() for x in draw(torch.float32)]
    both = where_and_mask()
    tensors = *inputs[:4], both["positions"], both["mask"], *(inputs[4:] if given_state else (None, None))
    options = None, 0.0, "gsu", 2, 3, True, False, 1, False, 1e-12, False, 0.0, return_state, "numpy"
    torch.library.opcheck(torch_ops.forward, (*tensors, *options))


def test_torchs_check_of_the_step():
    *arrays, slots, mass = draw(torch.float32, T=1)
    options = 0.0, "pdma", 2, 3, True, False, 0, False, 1e-12, "numpy"
    torch.library.opcheck(torch_ops.step, (*arrays, None, None, slots, mass, *options))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_takes_it_whole(compiler):
    def model(write, read, values, gamma, slots, mass):
        y, state = bridge.ram_attention(
            2 * write, read.exp(), values.sin(), gamma, state=RAMState(slots, mass), cape_heads=1,
            positions=torch.arange(T), top_k=(2, 3),
        )  # fmt: skip
        return (y.tanh() ** 2).sum() + state.slots.sin().sum()

    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    grads = []
    for function in (model, compiled, compiled):
        inputs = [x.requires_grad_() for x in draw()]
        function(*inputs).backward()
        grads.append([x.grad for x in inputs])
    for others in grads[1:]:
        for ours, expected in zip(others, grads[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert not torch_ops._waiting


def test_compiled_step_updates_the_state():
    compiled = torch.compile(bridge.ram_attention_step, backend="aot_eager", fullgraph=True)
    results = []
    for function in (bridge.ram_attention_step, compiled):
        *arrays, slots, mass = draw(T=1)
        y, state = function(*arrays, state=RAMState(slots, mass))
        assert state.slots is slots
        results.append((y, slots, mass))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_contexts_live_as_long_as_autograd_needs_them():
    inputs = [x.requires_grad_() for x in draw()[:4]]
    y, *_ = attend(*inputs)
    assert len(torch_ops._waiting) == 1
    y.sum().backward(retain_graph=True)
    first = [x.grad.clone() for x in inputs]
    y.sum().backward()
    for x, grad in zip(inputs, first, strict=True):
        torch.testing.assert_close(x.grad, 2 * grad, rtol=0, atol=0)
    assert not torch_ops._waiting
    with torch.no_grad():
        attend(*inputs)
    assert not torch_ops._waiting
    y, *_ = attend(*inputs)
    del y, _
    gc.collect()
    assert not torch_ops._waiting


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_keeps_no_context(use_reentrant):
    plain, again = ([x.requires_grad_() for x in draw()[:4]] for _ in range(2))
    attend(*plain)[0].sum().backward()
    y, *_ = torch.utils.checkpoint.checkpoint(attend, *again, use_reentrant=use_reentrant)
    assert not torch_ops._waiting
    y.sum().backward()
    for x, expected in zip(again, plain, strict=True):
        torch.testing.assert_close(x.grad, expected.grad, rtol=0, atol=0)


def test_copies_of_what_was_saved_are_refused():
    inputs = [x.requires_grad_() for x in draw()[:4]]
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda x: x):
        y, *_ = attend(*inputs)
    with pytest.raises(RuntimeError, match="saved itself, got a copy"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_inputs_that_a_compiler_computes_again_for_the_backward(backend):
    """The memory of the first ones may serve for something else by then."""
    *arrays, slots, mass = draw()
    both = where_and_mask()
    inputs = [*arrays, both["positions"].clone(), both["mask"], slots, mass]
    options = None, 0.0, "pdma", 2, 3, True, False, 1, False, 1e-12, False, 0.0, False, backend
    again = [x.clone() for x in inputs]
    y, _, _, ticket = torch_ops.forward(*inputs, *options)
    expected = torch_ops.backward(y, None, None, ticket, *inputs)
    for kept in (2, 3), ():  # values and gamma are what a context refers to
        for i, x in enumerate(inputs):
            if i not in kept:
                x.zero_()
        now = [x if i in kept else other for i, (x, other) in enumerate(zip(inputs, again, strict=True))]
        torch.testing.assert_close(torch_ops.backward(y, None, None, ticket, *now), expected, rtol=0, atol=0)


def test_on_the_cpu_only_values_and_gamma_must_lie_where_they_lay(monkeypatch):
    """The context refers to nothing else there, so nothing is computed again."""
    *arrays, slots, mass = draw()
    inputs = [*arrays, None, None, slots, mass]
    options = None, 0.0, "pdma", 2, 3, True, False, 0, False, 1e-12, False, 0.0, False, "numpy"
    y, _, _, ticket = torch_ops.forward(*inputs, *options)
    monkeypatch.setattr(torch_ops, "ram_attention_forward", None)
    others = [x if i in (2, 3) or x is None else x.clone() for i, x in enumerate(inputs)]
    torch_ops.backward(y, None, None, ticket, *others)


def test_an_input_changed_before_the_backward_is_seen():
    inputs = [x.requires_grad_() for x in draw()[:4]]
    values = inputs[2] * 1
    y, *_ = attend(*inputs[:2], values, inputs[3])
    values.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_derivative_is_refused():
    inputs = [x.requires_grad_() for x in draw()[:4]]
    [d] = torch.autograd.grad((attend(*inputs)[0] ** 2).sum(), inputs[2], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        d.sum().backward()


def test_inference_mode():
    *arrays, slots, mass = draw(T=1)
    expected, final = bridge.ram_attention(*arrays, state=RAMState(slots, mass))
    with torch.inference_mode():
        state = RAMState(slots.clone(), mass.clone())
        torch.testing.assert_close(bridge.ram_attention(*arrays, state=state), (expected, final), rtol=0, atol=0)
        y, _ = bridge.ram_attention_step(*arrays, state=state)
    torch.testing.assert_close((y, *state), (expected, *final))


def test_autocast_on_the_cpu_computes_in_float32():
    write, read, values, gamma, slots, mass = draw(torch.float32)
    expected = attend(write, read, values.bfloat16().float(), gamma, slots, mass)
    with torch.autocast("cpu", torch.bfloat16):
        y, *final = attend(write, read, values.bfloat16(), gamma, slots, mass)
        assert attend(*draw())[0].dtype == torch.float64
    torch.testing.assert_close((y, *final), expected, rtol=0, atol=0)
    inputs = [x.bfloat16().requires_grad_() for x in draw()[:4]]
    with torch.autocast("cpu", torch.bfloat16):
        attend(*inputs)[0].sum().backward()
    assert {x.grad.dtype for x in inputs} == {torch.bfloat16}


def test_deterministic_algorithms_are_honoured_without_a_warning():
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(2):
            inputs = [x.requires_grad_() for x in draw(torch.float32)]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                attend(*inputs)[0].sum().backward()
            results.append([x.grad for x in inputs])
        torch.testing.assert_close(*results, rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_are_the_sequence(device):
    write, read, values, gamma, slots, mass = draw(device=device)
    y, final = bridge.ram_attention(write, read, values, gamma, state=RAMState(slots, mass))
    state, steps = RAMState(slots.clone(), mass.clone()), []
    for t in range(T):
        one = slice(t, t + 1)
        y_t, state_t = bridge.ram_attention_step(
            write[:, one], read[:, one], values[:, one], gamma[:, one], state=state
        )
        assert state_t is state
        steps.append(y_t)
    torch.testing.assert_close(torch.cat(steps, 1), y)
    torch.testing.assert_close(tuple(state), tuple(final))
    assert state.slots.data_ptr() != slots.data_ptr()


def test_a_step_is_the_librarys_to_the_bit():
    *arrays, slots, mass = draw(torch.float32, T=1)
    theirs = RAMState(slots.numpy().copy(), mass.numpy().copy())
    expected, _ = ram_attention_step(*(a.numpy() for a in arrays), state=theirs)
    y, _ = bridge.ram_attention_step(*arrays, state=RAMState(slots, mass))
    for ours, other in zip((y, slots, mass), (expected, *theirs), strict=True):
        np.testing.assert_array_equal(ours, other, strict=True)


@pytest.mark.parametrize(
    ("ours", "library"), [("ram_attention", ram_attention_forward), ("ram_attention_step", ram_attention_step)]
)
def test_the_defaults_are_the_librarys(ours, library):
    of_library = {name: one.default for name, one in inspect.signature(library).parameters.items()}
    for name, one in inspect.signature(getattr(bridge, ours)).parameters.items():
        assert one.default == of_library[name], name


def test_a_number_for_gamma():
    write, read, values, _, slots, mass = draw(T=1)
    expected, final = bridge.ram_attention(write, read, values, 0.7, state=RAMState(slots, mass))
    y, nothing = bridge.ram_attention(write, read, values, 0.7, state=RAMState(slots, mass), return_state=False)
    assert nothing is None
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y, state = bridge.ram_attention_step(write, read, values, 0.7, state=RAMState(slots, mass))
    torch.testing.assert_close((y, *state), (expected, *final))


def wrong(**change):
    write, read, values, gamma, *_ = draw()
    call = {"write_logits": write, "read_logits": read, "values": values, "gamma": gamma}
    return call | {name: value(call) if callable(value) else value for name, value in change.items()}


ERRORS = [
    ({"values": lambda c: c["values"].numpy()}, TypeError, "values must be a torch.Tensor, got ndarray"),
    ({"values": lambda c: c["values"].bfloat16()}, TypeError, "values must be float32 or float64 on the CPU, got "),
    ({"values": lambda c: c["values"].float()}, TypeError, "values must have the dtype of write_logits"),
    ({"values": lambda c: c["values"].to("meta")}, TypeError, "values must be a dense tensor on the CPU or a CUDA GPU"),
    ({"write_logits": lambda c: c["write_logits"][0]}, ValueError, "write_logits must have 5 axes"),
    ({"read_logits": lambda c: c["read_logits"][0]}, ValueError, "read_logits must have 5 axes"),
    ({"read_logits": lambda c: c["read_logits"][:, :2]}, ValueError, "axis 1 (T) differs"),
    ({"gamma": "much"}, TypeError, "gamma must be a number or a torch.Tensor, got str"),
    ({"gamma": -1.0}, ValueError, "gamma must not be negative for update='pdma', got -1.0"),
    ({"gamma": lambda c: c["gamma"][..., 0]}, ValueError, "gamma must be a number or have shape (B, T, H)"),
    ({"top_k": M + 1}, ValueError, "top_k must be between 1 and the number of slots M = 8, got 9"),
    ({"top_k": 2.0}, TypeError, "top_k must be an integer, got 2.0"),
    ({"top_k": [1, 2, 3]}, ValueError, "top_k must be one value or a (write, read) pair, got 3 values"),
    ({"renorm": 1}, TypeError, "renorm must be True or False, got 1"),
    ({"update": "sum"}, ValueError, "update must be"),
    ({"mask": lambda c: torch.ones(B, T)}, ValueError, "mask must be bool of shape (B, T)"),
    ({"positions": lambda c: torch.ones(T)}, TypeError, "positions must be integers, got float"),
    ({"state": (1, 2)}, TypeError, "state must be a RAMState (slots, mass) of tensors, got tuple"),
    ({"return_state": None}, TypeError, "return_state must be True or False, got None"),
    ({"backend": "torch"}, ValueError, "backend must be one of"),
    ({"backend": 3}, TypeError, "backend must be a name or None, got 3"),
]


@pytest.mark.parametrize(("change", "error", "sentence"), ERRORS)
def test_a_wrong_argument_ends_in_one_sentence(change, error, sentence):
    with pytest.raises(error) as caught:
        bridge.ram_attention(**wrong(**change))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_step_refuses_gradients_and_no_state():
    *arrays, slots, mass = draw(T=1)
    with pytest.raises(TypeError, match="state must be a RAMState of tensors to update in place, got None"):
        bridge.ram_attention_step(*arrays, state=None)
    arrays[0].requires_grad_()
    with pytest.raises(RuntimeError, match="ram_attention_step has no gradient"):
        bridge.ram_attention_step(*arrays, state=RAMState(slots, mass))
    with pytest.raises(ValueError, match=r"state.slots must hold every element in memory of its own"):
        bridge.ram_attention_step(
            *[a.detach() for a in arrays], state=RAMState(torch.zeros(1, 1, 1, 1).double().expand(B, H, M, C), mass)
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("given_state", [False, True])
def test_packed_sequences_are_the_librarys_to_the_bit(device, given_state):
    write, read, values, gamma, *_ = (x[:1].requires_grad_() for x in draw(torch.float32, device))
    offsets = torch.tensor([0, 2, 2, T], dtype=torch.int32, device=device)
    rng = np.random.default_rng(1)
    state = None
    if given_state:
        slots, mass = rng.normal(size=(3, H, M, C)), rng.uniform(0.1, 1.0, size=(3, H, M))
        state = RAMState(*(torch.tensor(part, dtype=torch.float32, device=device) for part in (slots, mass)))
    y, final = bridge.ram_attention(write, read, values, gamma, cu_seqlens=offsets, state=state)
    (y.sum() + final.slots.square().sum()).backward()
    arrays = [torch_ops.array_of(x) for x in (write, read, values, gamma)]
    given = None if state is None else RAMState(*map(torch_ops.array_of, state))
    expected, states, ctx = ram_attention_forward(*arrays, cu_seqlens=[0, 2, 2, T], state=given)
    assert torch.equal(y, torch_ops.tensor_of(expected))
    assert final.slots.shape == (3, H, M, C)
    dstate = RAMState(2 * states.slots, 0 * states.mass)
    grads = ram_attention_backward(0 * expected + 1, ctx, dstate)
    for tensor, grad in zip((write, read, values, gamma), grads[:4], strict=True):
        assert torch.equal(tensor.grad, torch_ops.tensor_of(grad))


def test_torchs_check_of_packed_sequences():
    write, read, values, *_ = (x[:1].requires_grad_() for x in draw())
    options = 0.7, "pdma", 4, 4, False, False, 1, False, 1e-12, True, 0.0, True, "numpy"
    torch.library.opcheck(torch_ops.forward, (write, read, values, *[None] * 5, torch.tensor([0, 2, T]), *options))


def test_offsets_that_are_no_tensor_are_refused():
    write, read, values, *_ = (x[:1] for x in draw())
    with pytest.raises(TypeError, match=r"cu_seqlens must be a torch.Tensor, got list"):
        bridge.ram_attention(write, read, values, cu_seqlens=[0, T])
