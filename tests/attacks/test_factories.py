"""A factory stays small enough to read: settings that belong together are a record."""

import inspect

import pytest

from dyn_jax import attacks, metrics, objectives, training  # noqa: F401
from dyn_jax.training import hrl, loop, manidp, points, sdn

ROOMS = (attacks, attacks.lgm, attacks.released, objectives, metrics, metrics.exits, hrl, loop, manidp, points, sdn)
PUBLIC = {
    f"{room.__name__}.{name}": function
    for room in ROOMS
    for name, function in vars(room).items()
    if inspect.isfunction(function) and not name.startswith("_")
}


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_function_has_more_than_eight_parameters(name):
    assert len(inspect.signature(PUBLIC[name]).parameters) <= 8


def test_a_flag_called_protocol_is_gone():
    assert not [name for name, function in PUBLIC.items() if "protocol" in inspect.signature(function).parameters]
