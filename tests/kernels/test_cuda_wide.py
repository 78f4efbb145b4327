"""Contents in wide slices beside narrow ones, the same call both ways. Needs a GPU."""

import numpy as np
import pytest
from ramnet_np.kernels.cuda.memory import layout

from tests.operation_cases import Case, draw, run

pytestmark = pytest.mark.gpu
SHAPE = {"B": 2, "T": 150, "H": 3, "U": 5, "C": 64}


@pytest.fixture
def taken(monkeypatch):
    """Whether each pass over contents took wide slices, in turn."""
    taken, choose = [], layout.layout_of_contents.__wrapped__

    def noted(*given):
        chosen = choose(*given)
        taken.append(chosen is not given[0])
        return chosen

    monkeypatch.setattr("ramnet_np.kernels.cuda.memory.content.layout_of_contents", noted)
    return taken


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("top_k", [3, 8, 16, 32])
@pytest.mark.parametrize("options", [{}, {"mass_aware": True, "cape_heads": 1}], ids=["plain", "mass-aware"])
@pytest.mark.parametrize("given", [True, False], ids=["states", "none"])
def test_wide_slices_have_the_bits_of_narrow_ones(taken, monkeypatch, given, options, top_k, dtype):
    cp = pytest.importorskip("cupy")
    of = np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    case = Case("wide", **SHAPE, K=top_k, options=options, masked=0.2, state=given, dstate=given)
    found = []
    for time in (1, 10**6):  # of a wide block: then it pays always, or never
        monkeypatch.setattr(layout, "WIDE_TIME", time)
        results = run(draw(case, of), "cupy", cp.asarray)
        found.append({name: cp.asnumpy(value).tobytes() for name, value in results.items()})
    assert set(taken[: len(taken) // 2]) == {True}
    assert set(taken[len(taken) // 2 :]) == {False}
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
