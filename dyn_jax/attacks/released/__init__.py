"""What released code does differently from its paper, under names of its own, built from the same parts.

`lgm` has the attacks of LGM's code, `lgm_outdoor` that on LiDAR scans, `grad_auto` GradAuto's, `early_attack` that of
the early-exit study, `rdi` those of RDI-Nets, `slowformer` SlowFormer's on A-ViT, `deepsloth` DeepSloth's baselines.
"""

from dyn_jax.attacks.released import deepsloth as deepsloth
from dyn_jax.attacks.released import lgm as lgm
from dyn_jax.attacks.released import lgm_outdoor as lgm_outdoor
from dyn_jax.attacks.released import rdi as rdi
from dyn_jax.attacks.released.early_attack import early_attack as early_attack
from dyn_jax.attacks.released.grad_auto import direction_first as direction_first
from dyn_jax.attacks.released.grad_auto import form as form
from dyn_jax.attacks.released.grad_auto import grad_auto as grad_auto
from dyn_jax.attacks.released.grad_auto import printed as printed
from dyn_jax.attacks.released.slowformer import floor_level as floor_level
from dyn_jax.attacks.released.slowformer import ponder_objective as ponder_objective
from dyn_jax.attacks.released.slowformer import reported_macs as reported_macs
from dyn_jax.attacks.released.slowformer import slowformer as slowformer
