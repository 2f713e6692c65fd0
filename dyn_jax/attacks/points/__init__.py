"""Attacks on the coordinates of point clouds. One attack a file."""

from dyn_jax.attacks.points.base import PointAttack as PointAttack
from dyn_jax.attacks.points.base import PointAttackResult as PointAttackResult
from dyn_jax.attacks.points.bim import point_bim as point_bim
from dyn_jax.attacks.points.energy import point_grad_auto as point_grad_auto
from dyn_jax.attacks.points.energy import point_ilfo as point_ilfo
from dyn_jax.attacks.points.knn_pert import knn_pert as knn_pert
from dyn_jax.attacks.points.noise import point_noise as point_noise
from dyn_jax.attacks.points.pert import point_pert as point_pert
