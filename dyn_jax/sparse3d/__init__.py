"""Sparse 3D tensors under jit: voxelisation, kernel maps, convolution, pooling, and points end to end.

Sizes are static and counted on the host (`capacity_for`, `allocate`); which rows are in use is data, and what did not
fit is flagged. Coordinates are (batch, x, y, z) and never divided by the stride.
"""

from dyn_jax.sparse3d import operations as operations
from dyn_jax.sparse3d.allocate import Capacity as Capacity
from dyn_jax.sparse3d.allocate import allocate as allocate
from dyn_jax.sparse3d.allocate import bucket as bucket
from dyn_jax.sparse3d.allocate import capacity_for as capacity_for
from dyn_jax.sparse3d.allocate import point_cloud as point_cloud
from dyn_jax.sparse3d.convolution import convolve as convolve
from dyn_jax.sparse3d.cylinder import Cylinder as Cylinder
from dyn_jax.sparse3d.cylinder import Partition as Partition
from dyn_jax.sparse3d.cylinder import partition as partition
from dyn_jax.sparse3d.cylinder_near import near_cells as near_cells
from dyn_jax.sparse3d.form import OUTDOOR_RELEASE as OUTDOOR_RELEASE
from dyn_jax.sparse3d.form import PAPER as PAPER
from dyn_jax.sparse3d.form import RELEASE as RELEASE
from dyn_jax.sparse3d.form import Form as Form
from dyn_jax.sparse3d.kernel import offsets as offsets
from dyn_jax.sparse3d.maps import KernelMap as KernelMap
from dyn_jax.sparse3d.maps import kernel_map as kernel_map
from dyn_jax.sparse3d.pooling import global_average as global_average
from dyn_jax.sparse3d.pooling import global_max as global_max
from dyn_jax.sparse3d.pooling import global_sum as global_sum
from dyn_jax.sparse3d.pooling import pool_any as pool_any
from dyn_jax.sparse3d.pooling import pool_average as pool_average
from dyn_jax.sparse3d.pooling import pool_max as pool_max
from dyn_jax.sparse3d.pooling import pool_sum as pool_sum
from dyn_jax.sparse3d.segments import any_of as any_of
from dyn_jax.sparse3d.sites import Sites as Sites
from dyn_jax.sparse3d.sites import coarsen as coarsen
from dyn_jax.sparse3d.sites import reached as reached
from dyn_jax.sparse3d.sites import sites_of as sites_of
from dyn_jax.sparse3d.tensor import SparseTensor as SparseTensor
from dyn_jax.sparse3d.tensor import from_numpy as from_numpy
from dyn_jax.sparse3d.tensor import to_numpy as to_numpy
from dyn_jax.sparse3d.voxelize import Voxels as Voxels
from dyn_jax.sparse3d.voxelize import near_voxels as near_voxels
