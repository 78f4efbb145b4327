"""Grids on text, and the tests on books, on a GPU: as on the CPU, and resumed to the same bits. Needs a GPU."""

from dataclasses import replace

import pytest

from ramnet_np.data.corpus import read_corpus
from ramnet_np.experiment import one_run
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.one_run import run_one
from ramnet_np.model import RAMNet
from ramnet_np.runs.book_tests import names_table, needles_table
from ramnet_np.runs.slot_tests import slots_table
from ramnet_np.train.token_loss import documents_nats
from tests.experiment.test_text_grids import TINY, texts  # noqa: F401 - a fixture
from tests.runs.test_books import books, model_of

pytestmark = pytest.mark.gpu

NAMES = ("plain", "carried", "hybrid", "softmax")
WIDER = TINY.replace("width = 8", "width = 64").replace("order = 2", "order = 3")


def run_of(texts, name, **train):  # noqa: F811
    points = {point.name: point.base for point in read_grid(WIDER, "tiny", corpus=read_corpus(texts)).points}
    return replace(points[name], train=replace(points[name].train, **train))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_equals_the_cpus(texts, name):  # noqa: F811
    run = run_of(texts, name)
    cpu, gpu = (run_one(run, device, text=texts) for device in ("cpu", "gpu"))
    assert gpu["accuracy"]["bits_per_byte"] == pytest.approx(cpu["accuracy"]["bits_per_byte"], rel=1e-2)
    assert gpu["validation"]["bits_per_byte"] == pytest.approx(cpu["validation"]["bits_per_byte"], rel=1e-2)
    for way, rows in cpu["by_position"].items():
        assert [row["tokens"] for row in gpu["by_position"][way]] == [row["tokens"] for row in rows]
    if name != "softmax":
        found, wanted = (record["slots"][-1]["layers"][0] for record in (gpu, cpu))
        assert found == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_bfloat16_goes_on_to_the_same_bits(texts, name, tmp_path, monkeypatch):  # noqa: F811
    run = run_of(texts, name, dtype="bfloat16")
    monkeypatch.setattr(one_run, "REPORT_EVERY", 3)
    monkeypatch.setattr(one_run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(one_run, "SAVE_SHARE", 1e9)
    whole = run_one(run, "gpu", text=texts)

    def stop(progress):
        if progress.step == 9:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_one(run, "gpu", stop, tmp_path, text=texts)
    told = []
    again = run_one(run, "gpu", told.append, tmp_path, text=texts)
    assert told[0].step == 6
    for key in ("status", "accuracy", "validation", "training"):
        assert again[key] == whole[key], key


@pytest.mark.parametrize("settings", [{}, {"hybrid": "window", "hybrid_every": 2}, {"short_conv": 3}], ids=str)
def test_tests_on_books_equal_the_cpus(settings):
    corpus = books(b"Then Tom has a fox, and the fox has Tom. " * 60)
    found = []
    for device in ("cpu", "gpu"):
        model: RAMNet = model_of(width=32, **settings).to(device)
        nats = documents_nats(model, corpus, corpus.documents, 64)
        tables = names_table(corpus, corpus.documents, nats), slots_table(model, corpus, corpus.documents, 64, read=6)
        needles = needles_table(model, corpus, corpus.documents, 64, asked_after=(50, 200), starts=2)
        found.append([list(row.values()) for table in (*tables, needles) for row in table])
    for cpu, gpu in zip(*found, strict=True):
        assert [x for x in gpu if x is not None] == pytest.approx([x for x in cpu if x is not None], rel=2e-2, abs=2e-2)
