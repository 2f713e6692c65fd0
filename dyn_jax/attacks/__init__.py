"""Attacks: each usable with any network, objective and occupancy, under jit and vmap. One attack a file."""

from dyn_jax.attacks.apgd import apgd as apgd
from dyn_jax.attacks.apgd_t import apgd_t as apgd_t
from dyn_jax.attacks.base import Attack as Attack
from dyn_jax.attacks.base import AttackResult as AttackResult
from dyn_jax.attacks.base import Found as Found
from dyn_jax.attacks.base import Problem as Problem
from dyn_jax.attacks.base import is_adversarial as is_adversarial
from dyn_jax.attacks.batched import run_batched as run_batched
from dyn_jax.attacks.bim import bim as bim
from dyn_jax.attacks.bim import release_eps as release_eps
from dyn_jax.attacks.carlini_wagner import carlini_wagner as carlini_wagner
from dyn_jax.attacks.early_attack import early_attack as early_attack
from dyn_jax.attacks.early_attack import early_objective as early_objective
from dyn_jax.attacks.fgsm import fgsm as fgsm
from dyn_jax.attacks.lgm_auto_step import lgm_auto_step as lgm_auto_step
from dyn_jax.attacks.lgm_carlini_wagner import lgm_carlini_wagner as lgm_carlini_wagner
from dyn_jax.attacks.mi_fgsm import mi_fgsm as mi_fgsm
from dyn_jax.attacks.pgd import pgd as pgd
from dyn_jax.attacks.pixels import random_pixels as random_pixels
from dyn_jax.attacks.surrogate import query as query
from dyn_jax.attacks.surrogate import transfer as transfer
from dyn_jax.attacks.threat import L2 as L2
from dyn_jax.attacks.threat import Box as Box
from dyn_jax.attacks.threat import Linf as Linf
from dyn_jax.attacks.threat import ball as ball
