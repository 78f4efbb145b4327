"""One token of PyTorch's tensors: after the first step of a kind on a GPU, the others are launches alone."""

import importlib

import numpy as np
import pytest

from ramnet_np import RAMState, ram_attention_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
bridge = importlib.import_module("ramnet_np.bridges.torch")
torch_ops = importlib.import_module("ramnet_np.bridges.torch_ops")

from .test_torch import OPTIONS, WITHOUT_CUDA, draw  # noqa: E402


def test_a_step_counts_as_a_change_of_the_state():
    *arrays, slots, mass = draw(T=1)
    x = slots.clone().requires_grad_()
    product = (x * slots).sum()  # its gradient needs slots as they are now
    bridge.ram_attention_step(*arrays, state=RAMState(slots, mass))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def laid_out(tensor, how):
    """The same numbers, lying otherwise in memory."""
    if how == "strided":
        return tensor.transpose(0, 2).contiguous().transpose(0, 2)
    if how == "apart":  # from an address that no 16-byte access can use
        return torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)
    return tensor.clone()


@pytest.fixture
def paths(monkeypatch):
    """By which way the steps went."""
    went, checked = [], torch_ops._checked_step
    monkeypatch.setattr(torch_ops, "_launches", {})
    monkeypatch.setattr(torch_ops, "_checked_step", lambda *args: went.append("library") or checked(*args))
    return went


@pytest.mark.gpu
@WITHOUT_CUDA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["whole", "strided", "apart"])
@pytest.mark.parametrize("gamma", ["tensor", 0.3])
def test_later_steps_of_a_kind_are_the_librarys_to_the_bit(dtype, how, gamma, paths):
    *arrays, slots, mass = draw(dtype, "cuda", T=1)
    state = [x.to(dtype if dtype.itemsize >= 4 else torch.float32) for x in (slots, mass)]
    arrays = [laid_out(x, how) for x in arrays]
    if gamma != "tensor":
        arrays[3] = gamma
    options = OPTIONS["gsu"] | {"cape_heads": 1, "positions": torch.tensor([[4], [9]], device="cuda")}
    options["mask"] = torch.tensor([[True, True, False], [True, True, True]], device="cuda")[:, 1:2]
    results = []
    for seed in range(3):
        arrays[2].copy_(draw(dtype, T=1, seed=seed)[2])
        theirs, ours = (RAMState(*(x.clone() for x in state)) for _ in range(2))
        named = options | {name: torch_ops.array_of(options[name]) for name in ("positions", "mask")}
        expected, _ = ram_attention_step(
            *(torch_ops.array_of(x) if isinstance(x, torch.Tensor) else x for x in arrays),
            state=RAMState(*map(torch_ops.array_of, theirs)), **named,
        )  # fmt: skip
        y, _ = bridge.ram_attention_step(*arrays, state=ours, **options)
        for one, other in zip((y, *ours), (torch_ops.tensor_of(expected), *theirs), strict=True):
            assert torch.equal(one, other)
        results.append(y)
    assert not torch.equal(results[0], results[1])
    assert paths == ["library"] * (3 if how == "apart" else 1)


@pytest.mark.gpu
@WITHOUT_CUDA
def test_a_later_step_runs_on_torchs_stream_and_one_of_another_kind_is_checked(paths):
    *arrays, slots, mass = draw(torch.float32, "cuda", T=1)
    states = [RAMState(slots.clone(), mass.clone()) for _ in range(3)]
    bridge.ram_attention_step(*arrays, state=states[0])
    expected, _ = bridge.ram_attention_step(*arrays, state=states[1])
    late = torch.zeros_like(arrays[2])
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # in cycles; what follows waits for it on this stream alone
        late.copy_(arrays[2])
        y, _ = bridge.ram_attention_step(*arrays[:2], late, arrays[3], state=states[2])
    side.synchronize()
    assert torch.equal(y, expected)
    assert torch.equal(states[2].slots, states[1].slots)
    assert paths == ["library"]
    with pytest.raises(ValueError, match=r"state.slots must have shape"):
        bridge.ram_attention_step(*arrays, state=RAMState(slots[:1], mass))
    del paths[:]
    y, _ = bridge.ram_attention_step(*arrays, state=RAMState(slots, mass), backend="numpy")  # serves these arrays too
    torch.testing.assert_close(y, expected)
    assert paths == ["library"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_steps_on_a_gpu_that_is_not_the_current_one(paths):
    results = []
    for device in ("cuda:0", "cuda:1"):
        *arrays, slots, mass = draw(torch.float32, device, T=1)
        state = RAMState(slots, mass)
        ys = [bridge.ram_attention_step(*arrays, state=state)[0] for _ in range(2)]
        results.append([x.cpu() for x in (*ys, *state)])
    assert all(map(torch.equal, *results))
    assert torch.cuda.current_device() == 0
    assert paths == ["library"] * 2


@pytest.mark.gpu
@WITHOUT_CUDA
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.bool]
)
def test_tensors_on_a_gpu_as_arrays(dtype):
    x = (torch.arange(24, device="cuda").reshape(2, 3, 4) % 5).to(dtype)
    for tensor in (x, x.transpose(0, 2), x[:, 1:, ::2], x[:1].expand(5, 3, 4), x[1, 2, 3], x[:, :0]):
        array = torch_ops.array_of(tensor)
        assert array.shape == tensor.shape
        assert array.data.ptr == tensor.data_ptr()
        np.testing.assert_array_equal(array.get().astype(np.float64), tensor.double().cpu().numpy())
    array = torch_ops.array_of(x.clone())  # keeps the memory of a tensor that nothing else holds
    other = torch.zeros_like(x)
    assert array.data.ptr != other.data_ptr()
