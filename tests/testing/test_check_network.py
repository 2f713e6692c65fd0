"""check_network passes a network and names the promise that a planted bad one breaks."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from catalogue import CLASSES, some_images, tiny_forward

from dyn_jax.testing import check_network
from dyn_jax.types import Dilated, Output

IMAGES = some_images(4)


def network(change=lambda output, x: output, before=lambda x: x):
    """`tiny_forward` as a module, with its output changed."""

    def apply(variables, x, *, occupancy):
        return change(tiny_forward(before(x), occupancy), x)

    return SimpleNamespace(apply=apply)


def unit_of(output):
    return output.trace.units[0]


def with_unit(output, **fields):
    return output.replace(trace=output.trace.replace(units=(unit_of(output).replace(**fields),)))


def with_exits(output, exits):
    return output.replace(trace=output.trace.replace(exits=exits))


def test_passes_a_good_one():
    check_network(network(), {}, IMAGES)
    check_network(network(lambda o, x: with_exits(o, jnp.stack([o.logits, 2 * o.logits]))), {}, IMAGES)
    check_network(network(lambda o, x: with_unit(o, dilated=Dilated(unit_of(o).occupancy, 3))), {}, IMAGES)


def nan_gradient(x):
    return x + jnp.sqrt(jnp.sum((x - x) ** 2))


def host(output, x):
    """Depends on whether it is traced."""
    return output.replace(logits=output.logits + (0.0 if isinstance(x, jax.core.Tracer) else 1.0))


def swapped(output, x):
    other = 1.0 - unit_of(output).occupancy
    return with_unit(output, occupancy=other)


BAD = {
    "bare logits": (network(lambda o, x: o.logits), "expected an Output"),
    "logits per class first": (network(lambda o, x: o.replace(logits=o.logits.T)), "logits"),
    "NaN logits": (network(lambda o, x: o.replace(logits=o.logits * jnp.nan)), "logits.*not finite"),
    "float macs": (network(lambda o, x: with_unit(o, macs=36.0)), "macs.*float"),
    "bool macs": (network(lambda o, x: with_unit(o, macs=True)), "macs.*bool"),
    "negative static macs": (network(lambda o, x: Output(o.logits, o.trace.replace(static_macs=-1))), "static_macs"),
    "score without batch": (
        network(lambda o, x: with_unit(o, score=unit_of(o).score.sum(), occupancy=unit_of(o).occupancy.sum())),
        "score and occupancy",
    ),
    "occupancy beyond 1": (network(lambda o, x: with_unit(o, occupancy=2 * unit_of(o).occupancy)), "occupancy in"),
    "occupancy of another score": (network(swapped), "occupancy function of the score"),
    "NaN score": (network(lambda o, x: with_unit(o, score=unit_of(o).score * jnp.nan)), "score.*not finite"),
    "dilated beyond 1": (
        network(lambda o, x: with_unit(o, dilated=Dilated(2 + unit_of(o).occupancy, 3))),
        "dilated occupancy in",
    ),
    "exits batch first": (network(lambda o, x: with_exits(o, o.logits[:, None])), "exits"),
    "NaN gradient": (network(before=nan_gradient), "gradient by the images"),
    "not pure": (network(host), "jit = eager"),
    "sees the batch": (network(before=lambda x: x - x.mean()), "vmap = batch|alone"),
    "sees the place": (network(before=lambda x: x + jnp.arange(x.shape[0]).reshape(-1, 1, 1, 1) / 3), "order"),
}


@pytest.mark.parametrize("name", BAD)
def test_names_what_a_bad_one_breaks(name):
    net, message = BAD[name]
    with pytest.raises(AssertionError, match=message):
        check_network(net, {}, IMAGES)


def test_one_image_is_too_few():
    with pytest.raises(AssertionError, match="batch of 1"):
        check_network(network(), {}, IMAGES[:1])


def test_classes_of_the_catalogue():
    assert tiny_forward(IMAGES).logits.shape == (3, CLASSES)
