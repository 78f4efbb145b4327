import numpy as np
import pytest

from ramnet_np.train.metrics import MetricsWriter, hits, read_metrics


def test_hits():
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0], [0.0, 0.0, 5.0]])
    assert hits(logits, np.array([1, 2, 2])) == 2


def test_metrics_writer_round_trip(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"step": s, "kind": "train", "loss": 1 / (s + 3)} for s in range(4)]
    with MetricsWriter(path) as log:
        for record in records:
            log.write(record)
            assert read_metrics(path)[-1] == record  # on disk at once, floats to the last bit
    assert read_metrics(path) == records
    with MetricsWriter(path):
        pass
    assert read_metrics(path) == []


def test_metrics_writer_resumes_at_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as log:
        for step in range(1, 6):
            log.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4, 5]
    with MetricsWriter(path, resume_step=3) as log:
        log.write({"step": 4, "again": True})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_read_metrics_bad_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metrics file at"):
        read_metrics(tmp_path / "nowhere.jsonl")
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* must be a JSON object, got 'not json'"):
        read_metrics(path)
