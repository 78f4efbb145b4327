"""The table of mixers: what every module of model/mixers must hold, and what the rest of the library reads from it."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import numpy as np
import pytest

import ramnet_np
from ramnet_np.model import RAMNet, RAMNetConfig, state_elements
from ramnet_np.model.config import MIXER_CHECKS, MixerName
from ramnet_np.model.mixers import MIXERS, add_mixer, linear, variant_labels

PACKAGE = Path(ramnet_np.__file__).parent
MODULES = {path.stem for path in (PACKAGE / "model" / "mixers").glob("*.py")} - {"__init__", "interface", "key_value"}


def test_help_offers_the_mixers_of_the_table():
    assert get_args(MixerName) == tuple(MIXERS) == tuple(MIXER_CHECKS)


def test_a_mixer_is_called_after_its_module():
    assert set(MIXERS) == MODULES
    for name, mixer in MIXERS.items():
        assert mixer.name == name
        assert mixer.forward.__module__ == f"ramnet_np.model.mixers.{name}"


def test_nothing_asks_for_a_mixer_by_its_name():
    """The package compares ``x.mixer`` with no string, and looks it up in no table but the one."""
    asked = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (
            isinstance(node, ast.Compare)
            and "str" in map(_kind, ast.walk(node))
            and "mixer" in map(_kind, ast.walk(node))
        )
        or (isinstance(node, ast.Subscript) and _kind(node.slice) == "mixer" and ast.unparse(node.value) != "MIXERS")
    ]
    assert not asked


def _kind(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return "str"
    return "mixer" if isinstance(node, ast.Attribute) and node.attr == "mixer" else "else"


@pytest.mark.parametrize("name", MIXERS)
def test_the_first_variant_describes_every_configuration(name):
    mixer = MIXERS[name]
    assert not mixer.variants[0].settings
    for variant in mixer.variants:
        config = RAMNetConfig(mixer=name, **variant.settings)
        assert mixer.variant(config) is variant


def test_labels_tell_all_variants_apart():
    labels = variant_labels()
    assert labels == [
        "RAM-Net",
        "softmax attention",
        "sliding window",
        "linear attention",
        "DeltaNet",
        "Gated DeltaNet",
        "GLA",
        "Mamba2",
        "softmax, no positions",  # an ablation: last
    ]
    names = [variant.name for mixer in MIXERS.values() for variant in mixer.variants]
    assert len(set(names)) == len(names) == len(labels)


@pytest.mark.parametrize("name", MIXERS)
def test_only_a_state_that_grows_depends_on_a_long_context(name):
    config = RAMNetConfig(mixer=name)
    assert (state_elements(config, 1000) < state_elements(config, 2000)) is MIXERS[name].state_grows


def test_a_mixer_that_is_added_makes_models():
    """A copy of a mixer under another name: same models, and its own check."""

    def check(config):
        if config.mixer == "another" and config.heads == 3:
            raise ValueError("heads must not be 3")

    with patch.dict(MIXERS), patch.dict(MIXER_CHECKS):
        add_mixer(replace(linear.MIXER, name="another", check=check))
        config = RAMNetConfig(vocab=11, width=12, mixer="another")
        ids = np.arange(10).reshape(2, 5)
        expected = RAMNet(replace(config, mixer="linear")).forward(ids)[0]
        np.testing.assert_array_equal(RAMNet(config).forward(ids)[0], expected)
        with pytest.raises(ValueError, match="heads must not be 3"):
            replace(config, heads=3)
        assert replace(config, mixer="linear", heads=3).heads == 3
        with pytest.raises(ValueError, match=r"name must be none of .*'another', got 'another'"):
            add_mixer(replace(linear.MIXER, name="another"))
    with pytest.raises(ValueError, match=r"mixer must be one of 'ram', .*'mamba2', got 'another'"):
        RAMNetConfig(mixer="another")
