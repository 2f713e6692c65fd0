"""Attacks: each usable with any network, objective and occupancy, on images and clouds, under jit and vmap.

One attack a file; what a released code does differently from its paper is in `released` (LGM's also as `lgm`).
"""

from dyn_jax.attacks import released as released
from dyn_jax.attacks.apgd import apgd as apgd
from dyn_jax.attacks.apgd_t import apgd_t as apgd_t
from dyn_jax.attacks.base import Attack as Attack
from dyn_jax.attacks.base import AttackResult as AttackResult
from dyn_jax.attacks.base import Found as Found
from dyn_jax.attacks.base import Problem as Problem
from dyn_jax.attacks.base import Steps as Steps
from dyn_jax.attacks.base import is_adversarial as is_adversarial
from dyn_jax.attacks.batched import Batched as Batched
from dyn_jax.attacks.batched import Interrupted as Interrupted
from dyn_jax.attacks.batched import without_traces as without_traces
from dyn_jax.attacks.bim import bim as bim
from dyn_jax.attacks.carlini_wagner import carlini_wagner as carlini_wagner
from dyn_jax.attacks.domains import Coordinates as Coordinates
from dyn_jax.attacks.domains import Domain as Domain
from dyn_jax.attacks.domains import Pixels as Pixels
from dyn_jax.attacks.early_attack import early_attack as early_attack
from dyn_jax.attacks.early_attack import early_objective as early_objective
from dyn_jax.attacks.energy import EnergySteps as EnergySteps
from dyn_jax.attacks.energy import Form as Form
from dyn_jax.attacks.fgsm import fgsm as fgsm
from dyn_jax.attacks.forward import as_forward as as_forward
from dyn_jax.attacks.grad_auto import Rectify as Rectify
from dyn_jax.attacks.grad_auto import grad_auto as grad_auto
from dyn_jax.attacks.grad_mdm import grad_mdm as grad_mdm
from dyn_jax.attacks.ilfo import ilfo as ilfo
from dyn_jax.attacks.knn_pert import KNNDistance as KNNDistance
from dyn_jax.attacks.knn_pert import knn_pert as knn_pert
from dyn_jax.attacks.lgm_auto_step import lgm_auto_step as lgm_auto_step
from dyn_jax.attacks.lgm_carlini_wagner import lgm_carlini_wagner as lgm_carlini_wagner
from dyn_jax.attacks.mi_fgsm import mi_fgsm as mi_fgsm
from dyn_jax.attacks.pgd import pgd as pgd
from dyn_jax.attacks.pixels import random_pixels as random_pixels
from dyn_jax.attacks.point_bim import point_bim as point_bim
from dyn_jax.attacks.point_noise import point_noise as point_noise
from dyn_jax.attacks.point_pert import point_pert as point_pert
from dyn_jax.attacks.released import lgm as lgm
from dyn_jax.attacks.surrogate import query as query
from dyn_jax.attacks.surrogate import transfer as transfer
from dyn_jax.attacks.threat import L2 as L2
from dyn_jax.attacks.threat import Box as Box
from dyn_jax.attacks.threat import Linf as Linf
from dyn_jax.attacks.threat import Ray as Ray
from dyn_jax.attacks.threat import ball as ball
from dyn_jax.attacks.threat import to_8bit as to_8bit
