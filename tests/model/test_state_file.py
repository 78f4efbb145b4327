"""A generation that is saved and gone on with: the same bits, or one sentence."""

from dataclasses import replace

import pytest

pytest.importorskip("safetensors")  # a model runs without it
from safetensors.numpy import load_file, save_file

from ramnet_np.model import RAMNet
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.state_file import load_generation, save_generation
from ramnet_np.model.states import arrays_of
from tests.model.test_generation import MODELS, make, prompts

DRAWN = Sampling(temperature=1.5, top_p=0.9, repetition_penalty=1.2, seed=4)


def drawn(generation, count):
    return [generation.next(DRAWN).tolist() for _ in range(count)]


def bits(generation):
    now = generation.standing()
    return [a.tobytes() for a in (now.logits, now.positions, now.seen, *(arrays_of([s.state for s in now.steppers])))]


@pytest.mark.parametrize("name", MODELS)
def test_going_on_gives_the_bits_of_not_having_stopped(name, tmp_path):
    model, path = make(name), tmp_path / "a.state"
    whole, generation = Generation(model, prompts()), Generation(model, prompts())
    expected = drawn(whole, 12)
    assert drawn(generation, 5) == expected[:5]
    save_generation(path, generation)
    again = load_generation(path, make(name))
    assert drawn(again, 7) == expected[5:] == drawn(generation, 7)
    assert bits(again) == bits(whole)


def test_a_prompt_is_appended_to_a_state(tmp_path):
    model, path = make("ram"), tmp_path / "a.state"
    save_generation(path, Generation(model, prompts((3, 4))))
    again = load_generation(path, model)
    again.read(prompts((2, 6)))
    one_process = Generation(model, prompts((3, 4)))
    one_process.read(prompts((2, 6)))
    assert bits(again) == bits(one_process)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 64
    path.write_bytes(data)


def _other_format(path):
    save_file(load_file(path), path, metadata={"format": "pt"})


def _later_format(path):
    save_file(load_file(path), path, metadata={"format": "ramnet-np generation 2"})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_cut, "must be a state of a generation, got a file cut short or of another kind"),
        (_flip, "is damaged: its numbers have changed since it was written"),
        (_other_format, r"must be a state of a generation \(ramnet-np generation 1\), got pt"),
        (_later_format, "got ramnet-np generation 2"),
        (lambda path: path.write_text("{}"), "got a file cut short or of another kind"),
        (lambda path: path.write_bytes(b""), "got a file cut short or of another kind"),
        (lambda path: path.unlink(), "must be a state of a generation, got no file"),
    ],
)
def test_a_file_that_is_none_is_refused(spoil, words, tmp_path):
    model, path = make("ram"), tmp_path / "a.state"
    save_generation(path, Generation(model, prompts()))
    spoil(path)
    with pytest.raises((ValueError, OSError), match=words) as caught:
        load_generation(path, model)
    assert "\n" not in str(caught.value)
    assert repr(str(path)) in str(caught.value)


def test_a_state_of_another_model_is_refused(tmp_path):
    model, path = make("ram"), tmp_path / "a.state"
    save_generation(path, Generation(model, prompts()))
    others = [
        RAMNet(model.config, seed=2),
        RAMNet(replace(model.config, gamma=0.5), params=model.params),
        model.to("cpu", "float64"),
        make("softmax"),
    ]
    for other in others:
        with pytest.raises(ValueError, match="must be a state of this model, got that of another one"):
            load_generation(path, other)


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    model, path = make("ram"), tmp_path / "a.state"
    generation = Generation(model, prompts())
    save_generation(path, generation)
    before = path.read_bytes()
    drawn(generation, 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ramnet_np.model.state_file.write_streamed", full)
    with pytest.raises(OSError, match="could not be written: No space left on device"):
        save_generation(path, generation)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.state"]
    with pytest.raises(OSError, match="could not be written"):
        save_generation(tmp_path / "nowhere" / "a.state", generation)
