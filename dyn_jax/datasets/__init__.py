"""Data sets as NumPy arrays on the host: everything is read from files that are already there.

`digits` needs none; `cifar10` and `cifar10_from_tfds` look in a folder that you name (or ``$DYN_JAX_DATA``).
"""

from dyn_jax.datasets.base import Batch as Batch
from dyn_jax.datasets.base import ImageData as ImageData
from dyn_jax.datasets.base import augment_crop_flip as augment_crop_flip
from dyn_jax.datasets.base import batches as batches
from dyn_jax.datasets.base import data_directory as data_directory
from dyn_jax.datasets.base import to_float as to_float
from dyn_jax.datasets.cifar import CIFAR10_CLASS_NAMES as CIFAR10_CLASS_NAMES
from dyn_jax.datasets.cifar import cifar10 as cifar10
from dyn_jax.datasets.digits import digits as digits
from dyn_jax.datasets.tfds_builder import cifar10_from_tfds as cifar10_from_tfds
from dyn_jax.datasets.tfds_builder import prepare_tfds as prepare_tfds
