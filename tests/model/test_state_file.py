"""A generation that is saved and gone on with: the same bits, or one sentence."""

from dataclasses import replace

import pytest

pytest.importorskip("safetensors")  # a model runs without it
from safetensors.numpy import load_file, save_file

from ramnet_np import MemoryTiers
from ramnet_np.model import RAMNet, state_file
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.state_file import load_generation, save_generation
from ramnet_np.model.states import arrays_of
from ramnet_np.model.streamed_file import Streamed, write_streamed
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


def _without(name):
    return lambda arrays: arrays.pop(name)


def _as(name, change):
    return lambda arrays: arrays.update({name: change(arrays[name])})


MEMORIES = {"dense": None, "sparse": MemoryTiers()}
SLOTS = r"got slots under '0\.0' that are not distinct ones of a state of shape \(5, 2, 27, 8\)"


@pytest.mark.parametrize(
    ("memory", "spoil", "words"),
    [
        ("dense", _without("logits"), "must be a whole state of a generation, got one without array 'logits'"),
        ("dense", _without("positions"), "got one without array 'positions'"),
        ("dense", _without("0.1"), "got one without array '0.1'"),
        ("sparse", _without("0.1.keys"), "got one without array '0.1.keys'"),
        ("dense", _without("0.rows"), "got 5 sequences with states"),
        ("dense", _as("0.rows", lambda rows: rows * 0), r"got 5 sequences with states \[0 0"),
        ("dense", _as("0.rows", lambda rows: rows.astype("f4")), "got 5 sequences with states"),
        ("dense", _as("0.rows", lambda rows: rows[0]), "got 5 sequences with states"),
        ("sparse", _as("0.rows", lambda rows: rows[None]), "got 5 sequences with states"),
        ("dense", _as("seen", lambda seen: seen[:, 1:]), r"got 'seen' of shape \(5, 28\), bool, for 5 sequences"),
        ("dense", _as("seen", lambda seen: seen.astype("f4")), r"got 'seen' of shape \(5, 29\), float32"),
        ("dense", _as("logits", lambda logits: logits[0]), r"got 'logits' of shape \(29,\)"),
        ("dense", _as("logits", lambda logits: logits.astype("f2")), "got numbers of type F16"),
        ("dense", _as("positions", lambda positions: positions[0]), r"got 'positions' of shape \(\)"),
        ("dense", _as("positions", lambda positions: positions[:0]), "for 0 sequences"),
        ("sparse", _as("0.0.keys", lambda keys: keys + 2**40), SLOTS),
        ("sparse", _as("0.0.keys", lambda keys: -keys), SLOTS),
        ("sparse", _as("0.0.keys", lambda keys: keys * 0), SLOTS),
        ("sparse", _as("0.0.keys", lambda keys: keys.astype("i4")), SLOTS),
        ("sparse", _as("0.0.values", lambda values: values[:, 1:]), SLOTS),
        ("sparse", _as("0.0.values", lambda values: values[1:]), SLOTS),
    ],
)
def test_a_file_with_other_arrays_is_refused_though_its_checksum_is_right(memory, spoil, words, tmp_path):
    model, path = make("ram"), tmp_path / "a.state"
    save_generation(path, Generation(model, prompts(), memory=MEMORIES[memory]))
    arrays = load_file(path)
    spoil(arrays)
    streamed = {name: Streamed.of(array) for name, array in arrays.items()}
    about = {"format": state_file.FORMAT, "model": state_file.fingerprint(model)}
    write_streamed(path, streamed, about | {"sha256": state_file._checksum(state_file.FORMAT, streamed)})
    with pytest.raises(ValueError, match=words) as caught:
        load_generation(path, model)
    assert "\n" not in str(caught.value)


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


def test_a_file_that_is_replaced_while_it_is_read_gives_the_state_that_it_was(tmp_path, monkeypatch):
    model, path = make("ram"), tmp_path / "a.state"
    first, later = Generation(model, prompts()), Generation(model, prompts((9, 2)))
    save_generation(path, first)
    pattern = state_file._pattern

    def another_program_saves(*arguments):
        save_generation(path, later)
        return pattern(*arguments)

    monkeypatch.setattr(state_file, "_pattern", another_program_saves)
    assert bits(load_generation(path, model)) == bits(first)
