"""check_network passes a network and names the promise that a planted bad one breaks."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from catalogue import CLASSES, some_images, tiny_forward

from dyn_jax.testing import check_network
from dyn_jax.types import Output

IMAGES = some_images(4)


def network(change=lambda output, x: output, before=lambda x: x):
    """`tiny_forward` with two exits as a module, its output changed."""

    def apply(variables, x, *, occupancy):
        output = tiny_forward(before(x), occupancy)
        return change(with_exits(output, jnp.stack([output.logits / 2, output.logits], axis=1)), x)

    return SimpleNamespace(apply=apply)


def unit_of(output):
    return output.trace.units[0]


def with_unit(output, **fields):
    return output.replace(trace=output.trace.replace(units=(unit_of(output).replace(**fields),)))


def with_exits(output, exits):
    return output.replace(trace=output.trace.replace(exits=exits))


def test_passes_a_good_one():
    check_network(network(), {}, IMAGES)
    check_network(network(priced), {}, IMAGES)


def priced(output, x, dense_macs=40, **extras):
    """An element costs what the image makes of it, 40 at most."""
    costs = 40 * jax.nn.sigmoid(x.mean((1, 2, 3)))
    extras = {"dilated": unit_of(output).occupancy, "value": x.mean((1, 2)), **extras}
    return with_unit(output, macs=costs, dense_macs=dense_macs, extras=extras)


def nan_gradient(x):
    return x + jnp.sqrt(jnp.sum((x - x) ** 2))


def host(output, x):
    """Depends on whether it is traced."""
    return output.replace(logits=output.logits + (0.0 if isinstance(x, jax.core.Tracer) else 1.0))


def swapped(output, x):
    other = 1.0 - unit_of(output).occupancy
    return with_unit(output, occupancy=other)


def exits_that_see_the_batch(output, x):
    return with_exits(output, output.trace.exits + x.mean())


def costs_that_see_the_batch(output, x):
    return priced(output, x, value=jnp.broadcast_to(x.mean(), (x.shape[0], 1)))


BAD = {
    "bare logits": (network(lambda o, x: o.logits), "expected an Output"),
    "logits per class first": (network(lambda o, x: o.replace(logits=o.logits.T)), "logits"),
    "NaN logits": (network(lambda o, x: o.replace(logits=o.logits * jnp.nan)), "logits.*not finite"),
    "macs of another shape": (network(lambda o, x: with_unit(o, macs=jnp.ones((3, 2)))), r"macs \(3, 2\)"),
    "macs without batch": (network(lambda o, x: with_unit(o, macs=jnp.ones(1))), r"macs \(1,\)"),
    "float macs": (network(lambda o, x: with_unit(o, macs=36.0)), r"macs \(\), expected an integer"),
    "negative macs": (network(lambda o, x: with_unit(o, macs=-36)), "macs: got -36"),
    "negative costs": (network(lambda o, x: with_unit(o, macs=-x.mean((1, 2, 3)))), "macs down to -"),
    "NaN costs": (network(lambda o, x: with_unit(o, macs=x.mean((1, 2, 3)) * jnp.nan)), "macs.*not finite"),
    "dearer than dense": (network(lambda o, x: priced(o, x, dense_macs=1)), "of a dense 1"),
    "float dense macs": (network(lambda o, x: with_unit(o, dense_macs=36.0)), "dense_macs: got 36.0"),
    "negative static macs": (network(lambda o, x: Output(o.logits, o.trace.replace(static_macs=-1))), "static_macs"),
    "score without batch": (
        network(lambda o, x: with_unit(o, score=unit_of(o).score.sum(), occupancy=unit_of(o).occupancy.sum())),
        "score and occupancy",
    ),
    "occupancy beyond 1": (network(lambda o, x: with_unit(o, occupancy=2 * unit_of(o).occupancy)), "occupancy in"),
    "occupancy of another score": (network(swapped), "occupancy function of the score"),
    "NaN score": (network(lambda o, x: with_unit(o, score=unit_of(o).score * jnp.nan)), "score.*not finite"),
    "dilated beyond 1": (network(lambda o, x: priced(o, x, dilated=2 + unit_of(o).occupancy)), "dilated in"),
    "NaN extra": (network(lambda o, x: priced(o, x, value=x * jnp.nan)), "value.*not finite"),
    "extra without batch": (network(lambda o, x: priced(o, x, value=jnp.ones(()))), r"value \(\)"),
    "exits first": (network(lambda o, x: with_exits(o, jnp.stack([o.logits] * 2))), "exits"),
    "NaN exits": (network(lambda o, x: with_exits(o, o.trace.exits * jnp.nan)), "exits.*not finite"),
    "exits see the batch": (network(exits_that_see_the_batch), "exits"),
    "an extra sees the batch": (network(costs_that_see_the_batch), "value"),
    "NaN gradient": (network(before=nan_gradient), "gradient by the images"),
    "NaN gradient of the costs": (
        network(lambda o, x: with_unit(o, macs=40 + nan_gradient(0 * x).mean((1, 2, 3)), dense_macs=40)),
        "gradient by the images",
    ),
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
