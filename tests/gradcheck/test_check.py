"""The gradient checker must see right from wrong."""

import numpy as np
import pytest

from ramnet_np import ram_attention_backward, ram_attention_forward
from ramnet_np.gradcheck import gradcheck

X = np.random.default_rng(0).normal(size=(3, 4))


def test_passes_a_right_gradient():
    report = gradcheck(lambda x: (np.sin(x), x), lambda dy, x: np.cos(x) * dy, {"x": X})
    assert report.passed
    assert report.rows[0].checked == 12
    assert report.rows[0].max_rel_error < 1e-9


@pytest.mark.parametrize("planted", [1 + 1e-5, 0.0, -1.0, np.nan])
def test_fails_a_wrong_gradient(planted):
    report = gradcheck(lambda x: (np.sin(x), x), lambda dy, x: planted * np.cos(x) * dy, {"x": X})
    assert not report.passed
    with pytest.raises(AssertionError, match="FAIL"):
        report.raise_if_failed()


def test_sees_one_wrong_element():
    def backward(dy, x):
        dx = np.cos(x) * dy
        dx[2, 3] *= 1.001
        return dx

    assert not gradcheck(lambda x: (np.sin(x), x), backward, {"x": X}).passed


def test_a_gradient_that_is_zero_everywhere_checks_nothing():
    def forward(x):
        return np.floor(x), x

    zeros = {"forward": forward, "backward": lambda dy, x: 0 * x, "inputs": {"x": X}}
    assert gradcheck(**zeros).rows[0].verdict == "all zero"
    assert gradcheck(**zeros, may_be_zero=("x",)).passed


@pytest.mark.parametrize("wrong", [1.0, 1e-9, np.inf, np.nan])
def test_an_input_that_may_be_zero_must_have_the_gradient_zero_then(wrong):
    def forward(x, y):
        return np.sin(x), x

    def backward(dy, x):
        return np.cos(x) * dy, np.full(3, wrong)

    inputs = {"x": X, "y": np.ones(3)}
    report = gradcheck(forward, backward, inputs, may_be_zero=("y",), rtol=2.0)
    assert [row.verdict for row in report.rows] == ["pass", "not finite" if not np.isfinite(wrong) else "FAIL"]


def test_leaves_out_elements_whose_step_switches_a_selection():
    """max is not smooth where two entries meet; the index it keeps tells."""

    def forward(x):
        at = x.argmax(axis=-1)
        return np.take_along_axis(x, at[:, None], -1), (x, at)

    def backward(dy, ctx):
        x, at = ctx
        dx = np.zeros_like(x)
        np.put_along_axis(dx, at[:, None], dy, -1)
        return dx

    x = X.copy()
    x[1] = [0.5, 0.5 + 1e-9, -1.0, -2.0]
    report = gradcheck(forward, backward, {"x": x})
    assert report.passed
    assert report.rows[0].left_out == 2


def test_leaves_out_top_k_switches_of_the_operation():
    rng = np.random.default_rng(0)
    write, read = rng.normal(size=(2, 1, 3, 1, 2, 3))
    write[0, 1, 0, 0] = [0.3, 0.3 + 1e-9, -0.8]  # the first two values of a digit all but tie
    values = rng.normal(size=(1, 3, 1, 2))

    def forward(*inputs):
        y, _, ctx = ram_attention_forward(*inputs, top_k=5, backend="numpy")
        return y, ctx

    report = gradcheck(
        forward,
        lambda dy, ctx: ram_attention_backward(dy, ctx)[:3],
        {"write_logits": write, "read_logits": read, "values": values},
    )
    assert report.passed, report
    assert report.rows[0].left_out == 2
    assert report.rows[1].left_out == 0


def test_samples_are_seeded_and_counted():
    def run(seed):
        return gradcheck(lambda x: (x**2, x), lambda dy, x: 2 * x * dy, {"x": X}, samples=5, seed=seed)

    assert run(1).rows[0].checked == 5
    assert run(1) == run(1)
    assert run(1) != run(2)


def test_nested_outputs_and_several_inputs():
    def forward(a, b):
        return (a * b, (a.sum(), None)), (a, b)

    def backward(dout, ctx):
        (a, b), (dab, (dsum, _)) = ctx, dout
        return dab * b + dsum, dab * a

    assert gradcheck(forward, backward, {"a": X, "b": X + 1}).passed


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({"x": X.astype(np.float32)}, TypeError, "'x' must be a float64"),
        ({"x": X, "y": X}, ValueError, "one gradient per input"),
    ],
)
def test_refuses_bad_input(inputs, error, words):
    with pytest.raises(error, match=words):
        gradcheck(lambda *x: (x[0] ** 2, x[0]), lambda dy, x: 2 * x * dy, inputs)


def test_refuses_a_gradient_of_another_shape():
    with pytest.raises(ValueError, match=r"gradient of 'x' must have shape \(3, 4\), got \(4,\)"):
        gradcheck(lambda x: (x**2, x), lambda dy, x: (2 * x * dy).sum(0), {"x": X})


def test_report_prints_a_table():
    report = gradcheck(lambda x: (x**2, x), lambda dy, x: 2 * x * dy, {"x": X}, title="square")
    text = str(report)
    assert text.startswith("square: PASS (relative error at most 1e-06, step 6.1e-06 * max(1, |x|))")
    assert "x      3x4    12" in text


def test_the_package_is_called_as_its_function():
    from ramnet_np import gradcheck as package

    report = package(lambda x: (x**2, x), lambda dy, x: 2 * x * dy, {"x": X}, title="square")
    assert report.passed
    assert report.title == "square"
    assert package.gradcheck is gradcheck
    assert package.STEP > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": [X]}, "inputs must be a dictionary of names and arrays, got list"),
        ({"inputs": {"x": np.ma.ones(3)}}, "input 'x' must be a float64 NumPy array, got MaskedArray"),
        ({"inputs": {"x": np.array([1.0, np.inf])}}, "input 'x' must be finite, got inf"),
        ({"samples": 0}, "samples must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"rtol": np.nan}, "rtol must be 0 or more and finite, got nan"),
        ({"may_be_zero": "x"}, "may_be_zero must be a tuple of names of inputs .x., got 'x'"),
        ({"may_be_zero": ("y",)}, "may_be_zero must be a tuple of names of inputs .x., got 'y'"),
        ({"forward": lambda x: x**2}, r"forward must return a tuple \(out, ctx\), got ndarray"),
        ({"backward": lambda dy, x: None}, "backward must return an array or a tuple .* got NoneType"),
    ],
)
def test_wrong_arguments_are_named(changes, words):
    good = {"forward": lambda x: (x**2, x), "backward": lambda dy, x: 2 * x * dy, "inputs": {"x": X}}
    with pytest.raises((ValueError, TypeError), match=words):
        gradcheck(**good | changes)
