"""A trained static network inside an adaptive one: with all units on, both compute the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dyn_jax import _validate
from dyn_jax.networks.blocks import block_plan
from dyn_jax.networks.checkpoint import check_finite, check_variables
from dyn_jax.networks.dynconv import DynConv
from dyn_jax.networks.manidp import ManiDP
from dyn_jax.networks.resnet import ResNet
from dyn_jax.networks.sact import SACT
from dyn_jax.networks.sdn import SDN
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.nn import BatchNorm, pad_shortcut
from dyn_jax.types import Variables


class Layout(NamedTuple):
    """What a family calls the layers of a residual network; ``/`` goes one module down.

    Attributes:
      block: ``{s}`` is the stage and ``{u}`` the place there, both from 1, ``{i}`` the place from 0, ``{n}`` the number
        in the network, from 0.
      shortcut: the projection where the shape changes; "" where that has no parameters.
      parts: other names of ``conv1, bn1, conv2, bn2`` in a block.
      head: the linear layer.
    """

    block: str
    shortcut: str = ""
    parts: Mapping[str, str] = {}
    head: str = "fc"


LAYOUTS: dict[type[nn.Module], Layout] = {
    SkipNet: Layout("group{s}_layer{i}", "group{s}_ds{i}"),
    DynConv: Layout("layer{s}_{i}", "layer{s}_{i}_downsample"),
    SDN: Layout("layers_{n}", "layers_{n}_downsample"),
    SACT: Layout("block{s}_unit{u}"),
    ManiDP: Layout(
        "stage_{s}_{i}",
        "stage_{s}_{i}/downsample",
        {"conv1": "conv_a", "bn1": "bn_a", "conv2": "conv_b", "bn2": "bn_b"},
        "classifier",
    ),
}


def embed(
    net: nn.Module, static: Variables, *, images: jax.Array | np.ndarray | None = None, seed: int = 0
) -> dict[str, Any]:
    """Variables of the adaptive `net` whose residual network is a trained static one with option-A shortcuts.

    With every unit on, and images normalised alike, the logits are those of the static network (SACT: where nothing
    halts before a block's last unit). An option-A shortcut becomes a strided 1x1 projection, an identity padded by
    zeros, with a norm that does nothing. ManiDP starts with saliency 1 everywhere: its gates' outer kernels are 0.

    Args:
      net: a `SkipNet`, `DynConv`, `ManiDP`, `SACT` with ``stem="resnet"``, or `SDN` of a ResNet, of basic blocks.
      static: variables of a `dyn_jax.networks.resnet.ResNet` of the same depths and widths, ``shortcut="A"``.
      images: [batch, height, width, 3] in [0, 1]: the norms of the shortcuts get the statistics that these have there,
        and so do nothing in training either. None: mean 0 and variance 1, which training will not find.
      seed: of the layers that the static network does not have: gates, classifiers.

    Returns:
      ``params`` and ``batch_stats`` of numpy arrays.

    Raises:
      TypeError: a network of another family.
      ValueError: `static` is not of such a ResNet, or of one of other sizes, or not finite; images outside [0, 1], or
        not finite where the network takes normalised ones.
    """
    layout = next((layout for family, layout in LAYOUTS.items() if isinstance(net, family)), None)
    if layout is None:
        families = ", ".join(family.__name__ for family in LAYOUTS)
        raise TypeError(f"net: got {type(net).__name__}, expected one of {families}")
    _validate.positive_int("seed", seed, 0)
    source = _resnet_of(static)
    check_finite("static", static)
    own: Any = getattr(net, "trunk", net)
    if images is not None:
        bounds = (-np.inf, np.inf) if getattr(net, "normalization", None) is None else (0.0, 1.0)
        _validate.within("images", _validate.images("images", images, channels=3), bounds)
    if (own.depths, own.widths) != (source.depths, source.widths):
        raise ValueError(
            f"static: got a ResNet of depths {source.depths} and widths {source.widths}, "
            f"expected {own.depths} and {own.widths}, those of the {type(net).__name__}"
        )
    plan = list(block_plan(source.depths, source.widths, "basic", source.widths[0]))
    say = lambda text, n: text.format(s=plan[n].stage + 1, i=plan[n].index, u=plan[n].index + 1, n=n)
    renamed = {"fc": layout.head, **{spec.name: say(layout.block, n) for n, spec in enumerate(plan)}}
    leaves = traverse_util.flatten_dict(dict(static), sep="/")
    taken = {_rename(path, renamed, layout.parts): np.asarray(leaf) for path, leaf in leaves.items()}

    size = getattr(net, "image_size", 32)
    like = jnp.zeros((1, size, size, 3)) if images is None else jnp.asarray(images)[:1]
    fresh: Any = traverse_util.flatten_dict(jax.device_get(jax.jit(net.init)(jax.random.key(seed), like)), sep="/")
    for path, leaf in fresh.items():
        if path.endswith(("mb1/fc2/kernel", "mb2/fc2/kernel")):
            taken[path] = np.zeros_like(leaf)
    shortcuts = [say(layout.shortcut, n) for n, spec in enumerate(plan) if layout.shortcut and spec.changes_shape]
    for name in shortcuts:
        path = next(p for p in (f"params/{name}/conv/kernel", f"params/{name}/kernel") if p in fresh)
        *_, before, after = fresh[path].shape
        taken[path] = np.array(pad_shortcut(jnp.eye(before, dtype=np.float32)[None, None], after, 1))
        if f"params/{name}/bn/scale" in fresh:
            taken |= _idle_norm(name, 0.0 * fresh[f"params/{name}/bn/bias"], fresh[f"params/{name}/bn/scale"])
    result = {**fresh, **taken}
    if images is not None:
        for name, y in _shortcut_outputs(net, traverse_util.unflatten_dict(result, sep="/"), images, shortcuts).items():
            result |= _idle_norm(name, np.mean(y, (0, 1, 2)), np.var(y, (0, 1, 2)))
    variables = traverse_util.unflatten_dict(result, sep="/")
    check_variables(net, variables)
    return variables


def _resnet_of(static: Variables) -> ResNet:
    """The option-A ResNet that variables belong to."""
    params: Any = static.get("params") if isinstance(static, Mapping) else None
    params = params if isinstance(params, Mapping) else {}
    stages = [int(found[1]) for name in params if (found := re.fullmatch(r"layer([1-9])_\d+", name))]
    depths = tuple(stages.count(stage) for stage in range(1, max(stages, default=0) + 1))
    try:
        widths = tuple(params[f"layer{stage}_0"]["conv1"]["kernel"].shape[3] for stage in range(1, len(depths) + 1))
        net = ResNet(depths, widths, num_classes=params["fc"]["bias"].shape[0])
        check_variables(net, static)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"static: got no variables of a ResNet with option-A shortcuts: {error}") from error
    return net


def _rename(path: str, renamed: Mapping[str, str], parts: Mapping[str, str]) -> str:
    collection, layer, *rest = path.split("/")
    if layer.startswith("layer"):
        rest[0] = parts.get(rest[0], rest[0])
    return "/".join([collection, renamed.get(layer, layer), *rest])


def _idle_norm(name: str, mean: np.ndarray, var: np.ndarray) -> dict[str, np.ndarray]:
    scale = np.sqrt(var + np.float32(BatchNorm.stabiliser))
    stats = {f"batch_stats/{name}/bn/mean": mean, f"batch_stats/{name}/bn/var": var}
    return {**stats, f"params/{name}/bn/scale": scale, f"params/{name}/bn/bias": mean}


def _shortcut_outputs(net: nn.Module, variables: Variables, images: Any, names: list[str]) -> dict[str, np.ndarray]:
    """What the projections of `names` that have a norm hand to it, all units on."""
    at = {tuple(name.split("/")): name for name in names}
    wanted = lambda module, method: method == "__call__" and module.name == "conv" and module.path[:-1] in at
    ones = lambda score: jnp.ones_like(score)
    run = jax.jit(
        lambda v, x: net.apply(v, x, occupancy=ones, capture_intermediates=wanted, mutable=["intermediates"])[1]
    )
    found: Any = traverse_util.flatten_dict(dict(run(variables, images).get("intermediates", {})))
    return {at[path[:-2]]: np.asarray(values[0]) for path, values in found.items()}
