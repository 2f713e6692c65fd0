"""Black-box attacks through a surrogate: label data by querying the target, attack the copy, judge on the target."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, AttackResult, is_adversarial
from dyn_jax.attacks.batched import in_batches
from dyn_jax.attacks.forward import Network, as_forward
from dyn_jax.types import Output


class TransferResult(flax.struct.PyTreeNode):
    """What a surrogate's adversarial examples do to the target.

    Attributes:
      source: the attack's result on the surrogate.
      generated: [batch] bool, adversarial on the surrogate though the clean image was not.
      fooled: [batch] bool, the target errs on the example.
      target_clean, target_adversarial: the target's `Output` on the clean and the adversarial batch.
    """

    source: AttackResult
    generated: jax.Array
    fooled: jax.Array
    target_clean: Output
    target_adversarial: Output


def query(target: Network, images: np.ndarray, *, batch_size: int = 250) -> np.ndarray:
    """The target's predicted classes, [n] int32: all that a black-box attacker sees.

    Args:
      target: images -> `Output` or logits.
      images: [n, height, width, channel] float in [0, 1].
      batch_size: images in one call; the last call is filled up, so that one shape is compiled.

    Raises:
      ValueError, TypeError: images that are no batch of at least one, or outside [0, 1]; batch_size not a positive
        integer; logits that are not finite: they say no class, and a copy would learn one from them.
    """
    _validate.positive_int("batch_size", batch_size)
    images = np.asarray(_validate.images("images", images))
    _validate.within("images", images, (0.0, 1.0))

    def predict(x: jax.Array) -> jax.Array:
        logits = as_forward(target)(x).logits
        return jnp.where(jnp.all(jnp.isfinite(logits), axis=-1), jnp.argmax(logits, axis=-1), -1)

    run = jax.jit(predict)
    said = in_batches(lambda rows: run(images[rows]), len(images), batch_size).astype(np.int32)
    if (said < 0).any():
        raise ValueError(f"target: got NaN or infinite logits for {int((said < 0).sum())} images, expected finite ones")
    return said


def transfer(
    attack: Attack,
    surrogate: Network,
    target: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    key: jax.Array | None = None,
) -> TransferResult:
    """Attacks the surrogate and shows the result to the target. Pure: works under jit and vmap.

    Args:
      attack: any attack of `dyn_jax.attacks`.
      surrogate, target: images -> `Output`, any two architectures, static or adaptive.
      images, labels, key: as for calling the attack.

    Raises:
      ValueError: surrogate and target have different numbers of classes; what the attack raises.

    Source: 2308.08709, section 3.1; Papernot et al. 2017.
    """
    surrogate, target = as_forward(surrogate), as_forward(target)
    images = _validate.images("images", images)
    clean = target(images)
    classes = jax.eval_shape(surrogate, images).logits.shape[-1]
    if classes != clean.logits.shape[-1]:
        raise ValueError(
            f"surrogate, target: got {classes} and {clean.logits.shape[-1]} classes, expected the same number"
        )
    source = attack(surrogate, images, labels, key=key)
    adversarial = target(source.adversarial)
    generated, fooled = source.success & ~source.clean_success, is_adversarial(adversarial.logits, labels)
    return TransferResult(source, generated, fooled, target_clean=clean, target_adversarial=adversarial)
