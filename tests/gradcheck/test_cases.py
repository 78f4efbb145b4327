"""Every gradient of the library against finite differences: what `ramnet-np gradcheck` runs, case by case."""

import pytest

from ramnet_np.backend import use_backend
from ramnet_np.gradcheck.cases import CASES, run_cases, summary_table

OPERATIONS = [name for name in CASES if name.startswith(("decode_address", "ram_attention"))]


@pytest.mark.parametrize("name", CASES)
def test_gradient_in_numpy(name):
    with use_backend("numpy"):
        report = CASES[name](24, 0)
    assert report.passed, str(report)
    assert sum(row.checked for row in report.rows) > 10 * sum(row.left_out for row in report.rows)


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradient_in_numba(name):
    """At few elements: tests/kernels/test_cpu_agreement.py compares all of them with those of NumPy."""
    with use_backend("numba"):
        report = CASES[name](8, 1)
    assert report.passed, str(report)


def test_summary_has_a_line_for_each_case():
    reports = run_cases("linear", samples=9)
    lines = summary_table(reports).splitlines()
    assert [line.split("  ")[0].strip() for line in lines[1:-1]] == [report.title for report in reports]
    assert lines[-1].startswith(f"{len(reports)} passed, 0 failed")


def test_an_unknown_case():
    with pytest.raises(ValueError, match=r"match must be part of a case's name .* got 'nothing'"):
        run_cases("nothing")
