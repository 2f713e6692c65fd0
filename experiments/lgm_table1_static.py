"""LGM paper, table I, the static ResNet-32 column (FGSM accuracy on CIFAR-10), claimed beside measured.

    python -m experiments.lgm_table1_static --checkpoint resnet32.th --data FOLDER

The published option-A ResNet-32 (`--checkpoint`; needs the `convert` extra) is attacked in the release's eps units
(eps 1 is 2/255, box (-1, 1), step = eps) and in the conventional eps/255 with box [0, 1], under the normalisation the
weights were trained with and under the one that LGM's loader uses. `--data` holds cifar10_lossless_test.npz, or the
original CIFAR-10 in any of the forms that `dyn_jax.datasets.cifar10` reads. A few seconds for 500 images.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from functools import partial

import weights_convert
from dyn_jax import attacks, metrics, networks
from dyn_jax.datasets import ImageData, cifar10, cifar10_lossless
from dyn_jax.nn import CIFAR10_MEAN_STD, IMAGENET_MEAN_STD
from experiments import _run
from weights_convert.torch_io import read_state_dict

NETWORK, BATCH_SIZE = "resnet-32-cifar10", 125
CLAIMED = {0: 92.63, 1: 31.33, 2: 21.45, 4: 16.76, 8: 12.01}
NORMALISATIONS = {"weights' own": IMAGENET_MEAN_STD, "LGM loader": CIFAR10_MEAN_STD}
UNITS = {
    "2/255 (release)": lambda eps: attacks.lgm.fgsm(attacks.lgm.eps_units(eps)),
    "1/255": lambda eps: attacks.fgsm(eps / 255),
}


def measure(state_dict: dict, data: ImageData) -> Iterator[dict]:
    """One row per eps, normalisation and unit; accuracies in percent with their binomial standard error."""
    variables = weights_convert.convert(NETWORK, state_dict)
    for (name, mean_std), (unit, attack) in itertools.product(NORMALISATIONS.items(), UNITS.items()):
        forward = partial(networks.create(NETWORK, normalize=mean_std).apply, variables)
        for eps, claimed in CLAIMED.items():
            result = attacks.Batched(attack(eps), forward, batch_size=BATCH_SIZE)(*_run.first(data))
            accuracy = float(metrics.robust_accuracy(result))
            error = (accuracy * (1 - accuracy) / len(data.labels)) ** 0.5
            row = {"eps": eps, "unit": unit, "normalisation": name, "claimed %": claimed}
            yield row | {"measured %": round(100 * accuracy, 2), "standard error": round(100 * error, 2)}


def main() -> None:
    parser = _run.parser(__doc__, "data")
    parser.add_argument("--checkpoint", required=True, help="published resnet32-*.th")
    how = parser.parse_args()
    lossless = os.path.exists(os.path.join(how.data, "cifar10_lossless_test.npz"))
    data = cifar10_lossless(how.data, "test") if lossless else cifar10(how.data, "test")
    print(f"{data.name}, {len(data.labels)} images")
    facts = {"data": data.name, "images": len(data.labels), "attack": "fgsm", "batch_size": BATCH_SIZE}
    _run.finish("lgm_table1_static", list(measure(read_state_dict(how.checkpoint), data)), how, **facts)


if __name__ == "__main__":
    main()
