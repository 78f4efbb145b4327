"""The command that lets a model write: several texts, stop strings, a state that is taken up again, its errors."""

import re
import signal
import sys

import pytest

from ramnet_np.cli import main
from ramnet_np.data.codec import ByteCodec, read_codec
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.runs.generate import HELP, GenerateOptions
from ramnet_np.runs.text import generate_text, load_codec, load_text_model
from ramnet_np.runs.tokenize import TokenizeOptions, tokenize_folder
from ramnet_np.runs.writing import encode_prompts, write

CONFIG = {"width": 16, "heads": 2, "layers": 2, "order": 3, "radix": 3, "top_k": 4, "init_std": 0.3, "cape": (2, 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("bytes")
    RAMNet(RAMNetConfig(vocab=256, tie_embeddings=False, **CONFIG), seed=3).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A model of pieces."""
    pytest.importorskip("tokenizers")
    out = tmp_path_factory.mktemp("pieces")
    (out / "a.txt").write_text("Tom has a fox and a hen. " * 90)
    tokenize_folder(TokenizeOptions(out / "a.txt", out / "tokens", vocab=280), progress=False)
    vocab = read_codec(out / "tokens" / "tokenizer.json").vocab
    RAMNet(RAMNetConfig(vocab=vocab, tie_embeddings=False, **CONFIG), seed=3).save_pretrained(out / "model")
    (out / "model" / "tokenizer.json").write_bytes((out / "tokens" / "tokenizer.json").read_bytes())
    return out / "model"


@pytest.fixture
def generate(capsys):
    def run(*args):
        status = main(["generate", *map(str, args)])
        return status, *capsys.readouterr()

    return run


def test_every_text_is_what_it_is_alone(generate, folder):
    prompts = ["Tom", "A longer prompt", "x"]
    status, out, err = generate(folder, *(f"--prompt={prompt}" for prompt in prompts), "--length", 9, "--seed", 5)
    alone = [
        generate(folder, "--prompt", prompt, "--length", 9, "--seed", 5 + n)[1] for n, prompt in enumerate(prompts)
    ]
    assert status == 0
    assert out == "".join(f"--- {n} ---\n{text}" for n, text in enumerate(alone, 1))
    assert re.fullmatch(
        r"read 19 bytes in [\d.]+ s \([\d,]+/s\); wrote 27 bytes in [\d.]+ s \([\d,]+/s\), 3 texts side by side\n", err
    )


def test_a_text_ends_before_a_stop_string(folder, pieces):
    for where in (folder, pieces):
        model, codec = load_text_model(where), load_codec(where)
        options = {"codec": codec, "temperature": 1.0, "seed": 2}
        whole = "".join(generate_text(model, "Tom", 60, **options))
        stop = whole[20:23]  # the tokens of a model of bytes, and most of a model of pieces, split it
        assert "".join(generate_text(model, "Tom", 60, stop=("never", stop), **options)) == whole[: whole.index(stop)]


def test_a_state_is_gone_on_from(generate, folder, tmp_path):
    state = tmp_path / "a.state"
    whole = generate(folder, "--prompt", "Tom", "--length", 30)[1]
    first = generate(folder, "--prompt", "Tom", "--length", 12, "--state", state)[1]
    before = state.read_bytes()
    kept = generate(folder, "--length", 18, "--state", state, "--keep-state")[1]
    assert state.read_bytes() == before
    second = generate(folder, "--length", 18, "--state", state)[1]
    assert kept == second
    assert state.read_bytes() != before
    for text in (first, second, whole):
        assert text.endswith("\n")
    if "\N{REPLACEMENT CHARACTER}" not in first[-2:]:  # else a character was cut
        assert first[:-1] + second == whole


def test_a_memory_in_tiers_writes_the_same(generate, folder, tmp_path):
    state, whole = tmp_path / "a.state", generate(folder, "--prompt", "Tom", "--length", 30)[1]
    tiers = "--memory.host=36KiB", "--memory.disk", tmp_path
    assert generate(folder, "--prompt", "Tom", "--length", 30, *tiers)[1] == whole
    first = generate(folder, "--prompt", "Tom", "--length", 12, "--state", state, *tiers)[1]
    second = generate(folder, "--length", 18, "--state", state, "--memory.host", "all")[1]
    if "\N{REPLACEMENT CHARACTER}" not in first[-2:]:  # else a character was cut
        assert first[:-1] + second == whole
    assert {path.name for path in tmp_path.iterdir()} == {"a.state"}


def test_weights_in_16_bits_go_on_from_a_state(generate, folder, tmp_path):
    state, half = tmp_path / "a.state", ("--dtype", "bfloat16", "--temperature", 0)
    whole = generate(folder, "--prompt", "Tom", "--length", 30, *half)[1]
    first = generate(folder, "--prompt", "Tom", "--length", 12, "--state", state, *half)[1]
    second = generate(folder, "--length", 18, "--state", state, *half)[1]
    if "\N{REPLACEMENT CHARACTER}" not in first[-2:]:  # else a character was cut
        assert first[:-1] + second == whole
    model, codec = load_text_model(folder), load_codec(folder)
    one = Generation(model, encode_prompts(["Tom"], codec), weights="bfloat16")
    assert whole == f"Tom{''.join(pieces[0] for pieces in write(one, 30, Sampling(), codec))}\n"


def test_a_long_prompt_is_paid_for_once(generate, folder, tmp_path):
    state, long, short = tmp_path / "a.state", tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("Once upon a time. " * 20)
    short.write_text("Then")
    status, out, err = generate(folder, "--prompt-file", long, "--length", 0, "--state", state)
    assert (status, out) == (0, long.read_text() + "\n")
    assert "read 360 bytes" in err
    assert "wrote" not in err
    out = generate(folder, "--prompt-file", short, "--length", 8, "--state", state, "--keep-state")[1]
    assert out == generate(folder, "--prompt", long.read_text() + "Then", "--length", 8)[1][len(long.read_text()) :]


def test_a_model_of_pieces_writes(generate, pieces):
    status, out, err = generate(pieces, "--prompt", "Tom has", "--length", 7, "--temperature", 0)
    assert status == 0
    assert out.startswith("Tom has")
    assert "wrote 7 tokens" in err


def test_the_help_names_every_option():
    flags = {line.split()[0] for line in HELP.splitlines() if line.startswith("  --")}
    options = GenerateOptions.__dataclass_fields__.keys() - {"folder", "sampling", "memory"}
    options |= {f"memory.{name}" for name in ("gpu", "host", "disk", "rows")}
    assert "--memory.disk-limit" in HELP
    options |= GenerateOptions.__dataclass_fields__["sampling"].default_factory().__dataclass_fields__.keys()
    assert flags == {f"--{name.replace('_', '-')}" for name in options}
    assert len(HELP.splitlines()) <= 44
    assert max(map(len, HELP.splitlines())) <= 108


def spoiled(path, change):
    path.write_bytes(change(path.read_bytes()))


def test_ctrl_c_while_it_writes_leaves_the_state_behind_the_text(folder, tmp_path, capfd, monkeypatch):
    command = ["generate", str(folder), "--prompt", "Tom has ", "--temperature", "0", "--length"]
    assert main([*command, "40"]) == 0
    whole = capfd.readouterr().out
    taken = []

    def next_on_host(self, sampling):
        taken.append(sampling)
        if len(taken) == 12:
            signal.raise_signal(signal.SIGINT)
        return own(self, sampling)

    own = Generation.next_on_host
    monkeypatch.setattr(Generation, "next_on_host", next_on_host)
    state = ["--state", str(tmp_path / "a.state")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "40", *state])
    assert ended.value.code == 130
    first = capfd.readouterr().out
    assert main(["generate", str(folder), "--temperature", "0", "--length", "28", *state]) == 0
    assert first.removesuffix("\n") + capfd.readouterr().out == whole


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--prompt", ""), "prompt must hold at least one character, got none"),
        (("--prompt-file", "nowhere.txt"), "prompt_file must be a file, got 'nowhere.txt', which is not there"),
        (("--prompt-file", "/"), "prompt_file must be a file, got '/', which is a folder"),
        (("--top-p", "0"), "top_p must be above 0 and at most 1, got 0.0"),
        (("--top-k", "0"), "top_k must be at least 1, got 0"),
        (("--min-p", "2"), "min_p must be between 0 and 1, got 2.0"),
        (("--seed", "-1"), "seed must be at least 0, got -1"),
        (("--length", "-1"), "length must be at least 0, got -1"),
        (("--repetition-penalty", "0"), "repetition_penalty must be between"),
        (("--keep-state",), "keep_state needs a state to go on from, got none"),
        (("--state", "/"), "state must be a file, got '/', which is a folder"),
        (("--state", "/nowhere/a.state"), "state must lie in a folder that exists, got '/nowhere/a.state'"),
        (("--state", "nowhere.state", "--keep-state"), "state must be a file to go on from, got 'nowhere.state'"),
        (("--dtype", "int8"), "dtype must be float32, float64 or bfloat16 on the CPU, got int8"),
        (("--memory.host", "much"), "memory.host must be a size such as 64GiB or 500MB, or all, got 'much'"),
        (("--memory.host", "1KB"), "memory.host must hold at least 256 slots of a layer, 9216 bytes, got 500 bytes"),
        (
            ("--memory.host", "1GB", "--memory.disk", "nowhere"),
            "memory.disk must be a folder that exists, got 'nowhere'",
        ),
        (("--memory.disk", "/"), "memory.host must say how much stays above memory.disk, such as 4GiB, got None"),
        (("--memory.gpu", "1GB"), "memory.gpu must be None for a state on the CPU"),
        (("--stop=",), "--stop must have a value, got ''"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(generate, folder, args, words):
    status, out, err = generate(folder, *args)
    assert (status, out) == (2, "")
    assert err.startswith("ramnet-np: ")
    assert words in err
    assert err.count("\n") == 1


def test_a_wrong_state_changes_nothing(generate, folder, tmp_path):
    state = tmp_path / "a.state"
    generate(folder, "--prompt", "Tom", "--prompt", "Ann", "--length", 3, "--state", state)
    whole = state.read_bytes()
    status, out, err = generate(folder, "--prompt", "x", "--state", state)
    assert (status, out) == (2, "")
    assert "prompt must be given never, or once for each text of state (2), got 1" in err
    RAMNet(RAMNetConfig(vocab=256, tie_embeddings=False, **CONFIG), seed=9).save_pretrained(tmp_path / "other")
    status, out, err = generate(tmp_path / "other", "--state", state)
    assert (status, out) == (2, "")
    assert "must be a state of this model, got that of another one" in err
    assert state.read_bytes() == whole
    state.write_bytes(whole[:-9])
    status, out, err = generate(folder, "--state", state)
    assert (status, out) == (2, "")
    assert "got a file cut short" in err
    assert state.read_bytes() == whole[:-9]


def test_bytes_that_are_no_text_are_a_prompt_of_a_model_of_bytes(generate, folder, pieces, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    assert generate(folder, "--prompt-file", path, "--length", 1)[1].startswith("caf\N{REPLACEMENT CHARACTER}")
    status, _, err = generate(pieces, "--prompt-file", path)
    assert status == 2
    assert "text must be Unicode for a model of pieces" in err
    assert ByteCodec().encode(path.read_bytes().decode(errors="surrogateescape")).tolist() == [99, 97, 102, 233]


def test_without_the_library_of_its_tokens_no_kernel_is_compiled(generate, pieces, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setattr("ramnet_np.runs.generate._load_kernels", lambda *_: pytest.fail("kernels were loaded"))
    status, out, err = generate(pieces)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"ramnet-np: .*must be installed: pip install 'ramnet-np\[text\]' .*\n", err)
