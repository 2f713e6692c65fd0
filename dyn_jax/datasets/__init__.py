"""Data sets as NumPy arrays on the host: everything is read from files that are already there.

`digits`, `rooms`, `objects` and `streets` need none; the others look in a folder that you name (or ``$DYN_JAX_DATA``).
"""

from dyn_jax.datasets.base import Batch as Batch
from dyn_jax.datasets.base import ImageData as ImageData
from dyn_jax.datasets.base import augment_crop_flip as augment_crop_flip
from dyn_jax.datasets.base import batches as batches
from dyn_jax.datasets.base import data_directory as data_directory
from dyn_jax.datasets.base import to_float as to_float
from dyn_jax.datasets.cifar import CIFAR10_CLASS_NAMES as CIFAR10_CLASS_NAMES
from dyn_jax.datasets.cifar import cifar10 as cifar10
from dyn_jax.datasets.cifar_packed import cifar10_jpeg as cifar10_jpeg
from dyn_jax.datasets.cifar_packed import cifar10_lossless as cifar10_lossless
from dyn_jax.datasets.cifar_packed import cifar10_packed as cifar10_packed
from dyn_jax.datasets.digits import digits as digits
from dyn_jax.datasets.image_files import image_file as image_file
from dyn_jax.datasets.image_files import image_folder as image_folder
from dyn_jax.datasets.modelnet40 import MODELNET40_CLASSES as MODELNET40_CLASSES
from dyn_jax.datasets.modelnet40 import modelnet40 as modelnet40
from dyn_jax.datasets.modelnet40 import read_off_object as read_off_object
from dyn_jax.datasets.objects import OBJECT_CLASSES as OBJECT_CLASSES
from dyn_jax.datasets.objects import objects as objects
from dyn_jax.datasets.points import IGNORE as IGNORE
from dyn_jax.datasets.points import Objects as Objects
from dyn_jax.datasets.points import Scene as Scene
from dyn_jax.datasets.points_files import read_points_bin as read_points_bin
from dyn_jax.datasets.rooms import ROOM_CLASSES as ROOM_CLASSES
from dyn_jax.datasets.rooms import room as room
from dyn_jax.datasets.rooms import rooms as rooms
from dyn_jax.datasets.s3dis import S3DIS_CLASSES as S3DIS_CLASSES
from dyn_jax.datasets.s3dis import read_s3dis_room as read_s3dis_room
from dyn_jax.datasets.s3dis import s3dis as s3dis
from dyn_jax.datasets.scannet import SCANNET_CLASSES as SCANNET_CLASSES
from dyn_jax.datasets.scannet import read_scannet_scene as read_scannet_scene
from dyn_jax.datasets.scannet import scannet as scannet
from dyn_jax.datasets.semantickitti import SEMANTICKITTI_CLASSES as SEMANTICKITTI_CLASSES
from dyn_jax.datasets.semantickitti import classes_of as classes_of
from dyn_jax.datasets.semantickitti import read_scan as read_scan
from dyn_jax.datasets.semantickitti import scan_iou as scan_iou
from dyn_jax.datasets.semantickitti import semantickitti as semantickitti
from dyn_jax.datasets.semantickitti import write_scan as write_scan
from dyn_jax.datasets.streets import STREET_CLASSES as STREET_CLASSES
from dyn_jax.datasets.streets import Scan as Scan
from dyn_jax.datasets.streets import streets as streets
from dyn_jax.datasets.tfds_builder import cifar10_from_tfds as cifar10_from_tfds
from dyn_jax.datasets.tfds_builder import prepare_tfds as prepare_tfds
from dyn_jax.datasets.tfds_points import objects_from_tfds as objects_from_tfds
from dyn_jax.datasets.tfds_points import prepare_objects_tfds as prepare_objects_tfds
from dyn_jax.datasets.tfds_points import prepare_scans_tfds as prepare_scans_tfds
from dyn_jax.datasets.tfds_points import prepare_scenes_tfds as prepare_scenes_tfds
from dyn_jax.datasets.tfds_points import scans_from_tfds as scans_from_tfds
from dyn_jax.datasets.tfds_points import scenes_from_tfds as scenes_from_tfds
