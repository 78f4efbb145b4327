"""The drop-in for the authors' operation, against their Torch reference and in their model, where these are installed.

pip install torch einops transformers flash-linear-attention && pip install --no-deps --pre ramnet-ops ramnet
"""

import importlib
import inspect
import sys
import warnings
from functools import partial
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
bridge = importlib.import_module("ramnet_np.bridges.ramnet_ops")
ours = bridge.random_access_memory_attention

B, T, H, U, P, C = 2, 6, 3, 3, 2, 4
M = P**U


def authors(package):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the CUDA part of ramnet-ops cannot load here; the Torch part does not need it
        return pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)


@pytest.fixture
def theirs():
    operation = authors("ramnet_ops").random_access_memory_attention
    return partial(operation, impl_backend="torch")


def draw(dtype=torch.float64, t_dim=1):
    torch.manual_seed(0)
    shape = [B, T] if t_dim == 1 else [T, B]
    tensors = [
        torch.randn(*shape, H, U, P), torch.randn(*shape, H, U, P), torch.randn(*shape, H, C), torch.randn(*shape, H),
        torch.randn(B, H, M, C), torch.rand(B, H, M) + 0.1,
    ]  # fmt: skip
    return [x.to(dtype) for x in tensors]


def both(operations, dtype=torch.float64, given_state=True, t_dim=1, **options):
    """(y, slot, mass and gradients) of each operation."""
    results = []
    for operation in operations:
        inputs = [x.requires_grad_() for x in draw(dtype, t_dim)]
        options = options | ({"init_ram": tuple(inputs[4:])} if given_state else {})
        y, state = operation(*inputs[:4], t_dim=t_dim, **options)
        (y.sin().sum() + state[0].cos().sum() + state[1].square().sum()).backward()
        results.append([y, *state, *(x.grad for x in inputs[: 6 if given_state else 4])])
    return results


CASES = {
    "defaults": {"given_state": False},
    "state": {},
    "cape": {"embed_num": 2, "position_ids": torch.arange(3, 3 + T)[None]},
    "cape from 0": {"embed_num": 2},
    "pairs": {"top_k": [2, 5], "top_k_re_norm": [True, False]},
    "dense": {"top_k": None},
    "mass": {"mass_aware": True, "eps": 1e-3},
    "time first": {"t_dim": 0},
    "mass of a number": {"given_state": False, "init_ram": (None, 0.5)},
    "16 bits": {"dtype": torch.bfloat16},
}


def test_the_signature_is_the_authors():
    operation = authors("ramnet_ops").random_access_memory_attention
    wanted = [(p.name, p.default) for p in inspect.signature(operation).parameters.values()]
    assert [(p.name, p.default) for p in inspect.signature(ours).parameters.values()] == wanted


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_the_authors(theirs, name):
    # their top 8 of 8 slots is no selection: 5 is one
    results = both((theirs, ours), **{"top_k": 5} | CASES[name])
    exact = {"rtol": 1e-8, "atol": 1e-10}
    rounded = {"rtol": 2e-2, "atol": 2e-2}
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **rounded if name == "16 bits" else exact)


def test_a_gamma_of_a_number_and_a_mask(theirs):
    write, read, values, *_ = draw()
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 2] = False
    (y_, state_), (y, state) = (operation(write, read, values, mask=mask) for operation in (theirs, ours))
    torch.testing.assert_close(y[mask], y_[mask])
    assert not y[~mask].any()
    torch.testing.assert_close(state, state_)


@pytest.mark.parametrize("length", [1, T])
def test_in_place(theirs, length):
    results = []
    for operation in (theirs, ours):
        write, read, values, gamma, slot, mass = draw()
        inputs = (x[:, :length] for x in (write, read, values, gamma))
        y, state = operation(*inputs, init_ram=(slot, mass), inplace=True)
        assert state[0] is slot or state[0].data_ptr() == slot.data_ptr()
        results.append((y, slot, mass))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("mass", ["tensor", "number"])
def test_one_token_without_gradients_leaves_the_given_state_as_it_was(mass):
    write, read, values, gamma, slot, masses = draw()
    given = slot, (masses if mass == "tensor" else 0.25)
    token = [x[:, :1] for x in (write, read, values, gamma)]
    mask = torch.tensor([[True], [False]])
    options = {"embed_num": 1, "position_ids": torch.tensor([[4]]), "top_k": (2, 5), "mask": mask}
    before = slot.clone(), masses.clone()
    with torch.no_grad():
        y, state = ours(*token, init_ram=given, **options)
    assert torch.equal(slot, before[0])
    assert torch.equal(masses, before[1])
    y_, state_ = ours(*(x.requires_grad_() for x in token), init_ram=given, **options)
    for one, other in zip((y, *state), (y_, *state_), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this PyTorch has no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_in_place_on_a_gpu_are_those_of_copies_to_the_bit(dtype):
    write, read, values, gamma, slot, mass = (x.cuda() for x in draw(dtype))
    slot, mass = slot.float(), mass.float()
    whole = torch.ones(B, T, dtype=torch.bool, device="cuda")
    whole[1, 2] = False
    copies = slot.clone(), mass.clone()
    for t in range(T):  # all but the first are launches alone
        token = [x[:, t : t + 1] for x in (write, read, values, gamma)]
        options = {"embed_num": 1, "position_ids": torch.tensor([[t], [t + 2]], device="cuda"), "top_k": (2, 5)}
        options["mask"] = whole[:, t : t + 1]
        y, state = ours(*token, init_ram=(slot, mass), inplace=True, **options)
        assert state[0] is slot
        assert state[1] is mass
        y_, copies = ours(*token, init_ram=copies, **options)
        assert y.dtype == dtype
        for one, other in zip((y, slot, mass), (y_, *copies), strict=True):
            assert torch.equal(one, other)
    sequence, final = ours(
        write, read, values, gamma, init_ram=tuple(x.cuda().float() for x in draw(dtype)[4:]), embed_num=1,
        position_ids=torch.arange(T, device="cuda") + torch.tensor([[0], [2]], device="cuda"), top_k=(2, 5), mask=whole,
    )  # fmt: skip
    torch.testing.assert_close((y, slot, mass), (sequence[:, -1:], *final), rtol=2e-2, atol=2e-2)


def test_time_is_where_t_dim_says_though_the_shapes_would_fit():
    """As many sequences as tokens: a shape alone does not tell which axis is time."""
    arrays = [x[:, :B] for x in draw()[:4]]
    mask = torch.tensor([[True, False], [True, True]])
    y, state = ours(*arrays, mask=mask)
    moved, state_ = ours(*(x.transpose(0, 1).contiguous() for x in arrays), mask=mask.T, t_dim=0)
    for one, other in zip((y, *state), (moved.transpose(0, 1), *state_), strict=True):
        assert torch.equal(one, other)


def test_a_state_broadcasts_and_either_part_may_be_left_out():
    arrays = [x.requires_grad_() for x in draw()[:4]]
    slot, mass = torch.randn(1, M, C).double(), torch.rand(1, M).double() + 0.1
    whole = slot.expand(B, H, M, C), mass.expand(B, H, M)
    for given, same in (
        ((slot, mass), whole),
        ((None, mass), (torch.zeros(B, H, M, C).double(), whole[1])),
        ((slot, None), (whole[0], torch.full((B, H, M), 1 / M).double())),
    ):
        (y, state), (y_, state_) = (ours(*arrays, init_ram=one) for one in (given, same))
        for one, other in zip((y, *state), (y_, *state_), strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
def test_several_tokens_of_one_head_are_not_taken_for_a_token():
    arrays = [x[:, :, :1] for x in draw()[:4]]
    state = tuple(x[:, :1] for x in draw()[4:])
    y, final = ours(*arrays, init_ram=state)
    for t in range(T):
        one, state = ours(*(x[:, t : t + 1] for x in arrays), init_ram=state)
        torch.testing.assert_close(one, y[:, t : t + 1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=1e-12, atol=1e-12)


def test_a_model_computes_with_the_operation_that_its_module_is_given(monkeypatch):
    """With a stand-in for the package ramnet: its layers, and those derived from them, look it up by name."""
    source = """
import torch
def random_access_memory_attention(): return "theirs"
class RAMNetAttention(torch.nn.Module):
    def forward(self): return random_access_memory_attention()
"""
    package = ModuleType("stand_in")
    exec(source, package.__dict__)
    package.RAMNetAttention.__module__ = "stand_in"
    monkeypatch.setitem(sys.modules, "stand_in", package)
    derived = type("Derived", (package.RAMNetAttention,), {})
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), derived())
    assert model[1]() == "theirs"
    assert bridge.use_in(model) is model
    assert package.random_access_memory_attention is ours
    assert bridge.use_in(model, lambda: "another")[1]() == "another"
    del package.random_access_memory_attention
    with pytest.raises(ValueError, match=r"model must hold layers RAMNetAttention .* got Sequential without one"):
        bridge.use_in(model)


ERRORS = [
    ({"values": 1.0}, TypeError, "values must be a torch.Tensor, got float"),
    ({"t_dim": 2}, ValueError, "w_addr must have time on axis t_dim = 2"),
    ({"gamma": torch.zeros(B, T + 1, H).double()}, ValueError, "must broadcast against one another"),
    ({"top_k": 9}, ValueError, "top_k must be between 1 and the number of slots M = 8, got 9"),
    ({"init_ram": (0.0, None)}, TypeError, "slot of init_ram must be a torch.Tensor or None, got float"),
    ({"init_ram": (None, torch.zeros(M))}, ValueError, "mass of init_ram must have at least 2 axes, got shape (8,)"),
    ({"init_ram": (torch.zeros(H, M, C + 1), None)}, ValueError, "slot of init_ram must end with axes (3, 8, 4), got"),
    ({"inplace": True}, TypeError, "init_ram must hold two tensors with inplace=True"),
    ({"inplace": True, "init_ram": (torch.zeros(H, M, C), torch.ones(H, M))}, ValueError, "slot of init_ram must be"),
]


@pytest.mark.parametrize(("change", "error", "sentence"), ERRORS)
def test_a_wrong_argument_ends_in_one_sentence(change, error, sentence):
    call = dict(zip(("w_addr", "r_addr", "values", "gamma"), draw()[:4], strict=True))
    with pytest.raises(error) as caught:
        ours(**call | change)
    assert sentence in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # those packages' own
def test_the_authors_model_computes_the_same(theirs):
    ramnet = authors("ramnet")
    torch.manual_seed(0)
    config = ramnet.RAMNetConfig(
        vocab_size=31, hidden_size=16, num_attention_heads=2, num_hidden_layers=2, addr_order=3, addr_radix=3,
        embed_num=1, addr_top_k=4, hidden_act="SiLU", fuse_norm=False, fuse_cross_entropy=False, dtype="float32",
    )  # fmt: skip
    model = ramnet.RAMNetForCausalLM(config).float()
    ids = torch.randint(3, 31, (2, 9))
    results = []
    try:
        # the layers ask for the CUDA kernels by name
        reference = lambda *args, impl_backend, **named: theirs(*args, **named)  # noqa: E731
        for operation in (reference, ours):
            assert bridge.use_in(model, operation) is model
            model.train().zero_grad()
            out = model(ids, labels=ids)
            out.loss.backward()
            grads = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
            tokens = model.eval().generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
            results.append((out.logits, out.loss, grads, tokens))
    finally:
        bridge.use_in(model, authors("ramnet_ops").random_access_memory_attention)
    (logits_, loss_, grads_, tokens_), (logits, loss, grads, tokens) = results
    torch.testing.assert_close(logits, logits_, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, loss_)
    torch.testing.assert_close(grads, grads_, rtol=1e-3, atol=1e-5)
    assert tokens.tolist() == tokens_.tolist()
