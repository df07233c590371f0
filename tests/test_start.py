"""What a run starts from: the network of its config, and weights that fit it or are refused with the reason."""

import numpy as np
import pytest
from test_train import tiny_config

from configs import common
from sousa_jax import checkpoint, models, start, train
from sousa_jax.errors import InputError


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder as `ports.convert` writes it."""
    folder = tmp_path_factory.mktemp("pretrained") / "ast"
    model_config = start.network(tiny_config("ast"))
    checkpoint.save_model(folder, checkpoint.Model("ast", model_config, *models.init("ast", model_config, 7), {}))
    return folder


def test_starts_from_a_given_model_and_refuses_one_that_does_not_fit(pretrained):
    """The given arrays are taken as they are; one of another shape is not taken at all."""
    given = checkpoint.load_model(pretrained)
    config = tiny_config("ast", init_from=str(pretrained))
    params, _ = start.arrays(config, given.config, None)
    assert params.keys() == given.params.keys()
    assert all(np.array_equal(params[key], given.params[key]) for key in params)
    wider = start.network(tiny_config("ast", model={"settings": {"mlp_width": 256}}))
    with pytest.raises(InputError, match="does not fit"):
        start.arrays(config, wider, None)


def test_weights_are_demanded_where_they_matter(tmp_path):
    """To train on from random weights by mistake would take days to notice; nothing is written either."""
    config = tiny_config("ast", "full", allow_random_init=False)
    with pytest.raises(
        InputError, match=r"needs trained weights: give --config\.init_from=DIR, .*ports\.convert --model=ast"
    ):
        train.run(config, tmp_path / "run")
    config.init_from = str(tmp_path / "absent")
    with pytest.raises(
        InputError, match=r"there is no folder .*absent; `python -m ports\.convert --model=ast .*absent`"
    ):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_architecture_show_both_sides(pretrained, tmp_path):
    """The message names what the network misses and what the folder has too much."""
    config = tiny_config("beats", "full", init_from=str(pretrained))
    with pytest.raises(InputError, match=r"does not fit beats beats: \d+ missing \(.*\); \d+ unexpected \("):
        train.run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "length", "expected"),
    [
        ("ast", "fill", {"target_frames": 0}),
        ("ast", "official", {"target_frames": 1024}),
        ("htsat", "fill", "fill"),
        ("htsat", "official", "stretch"),
        ("beats", "fill", {}),
        ("efficientat", "official", {}),
    ],
)
def test_how_a_window_meets_the_network(name, length, expected):
    """`config.model.length` reaches the part of each network that decides it."""
    config = common.experiment("efficientat", "scratch")
    config.model.update({"name": name, "variant": "mn10" if name == "efficientat" else name, "length": length})
    config.model.settings = {"dropout": 0.1}
    made = start.network(config)
    assert (made.frontend.window_s, made.num_classes, made.dropout) == (5.0, 40, 0.1)
    if isinstance(expected, str):
        assert made.length == expected
    else:
        assert expected.items() <= vars(made.frontend).items()


def test_an_unknown_length_policy_is_refused():
    """With the policies there are."""
    config = common.experiment("efficientat", "scratch")
    config.model.length = "stretched"
    with pytest.raises(InputError, match=r"config\.model\.length='stretched' is unknown, expected one of \('fill',"):
        start.network(config)
