"""Measures of answers, traces, images and clouds. Pure functions of what a forward pass or an attack returned.

What does not fit is a ValueError or a TypeError: shapes, labels that are no integers or out of range, flags that are
not one bool for each example, unknown names, two traces of different networks or batches, a trace without the units, or
the exits, that are measured. What else a function refuses stands with it.
"""

from dyn_jax.metrics import exits as exits
from dyn_jax.metrics.answers import accuracy as accuracy
from dyn_jax.metrics.answers import accuracy_kept as accuracy_kept
from dyn_jax.metrics.answers import robust_accuracy as robust_accuracy
from dyn_jax.metrics.answers import robust_accuracy_at as robust_accuracy_at
from dyn_jax.metrics.answers import success_rate as success_rate
from dyn_jax.metrics.energy import ASIC as ASIC
from dyn_jax.metrics.energy import Accelerator as Accelerator
from dyn_jax.metrics.energy import accelerator_energy as accelerator_energy
from dyn_jax.metrics.experts import expert_iou as expert_iou
from dyn_jax.metrics.experts import expert_load as expert_load
from dyn_jax.metrics.experts import load_imbalance as load_imbalance
from dyn_jax.metrics.images import psnr as psnr
from dyn_jax.metrics.minimal import local_optimality as local_optimality
from dyn_jax.metrics.points import confusion as confusion
from dyn_jax.metrics.points import iou as iou
from dyn_jax.metrics.points import mean_iou as mean_iou
from dyn_jax.metrics.traces import architecture_change as architecture_change
from dyn_jax.metrics.traces import dense_macs as dense_macs
from dyn_jax.metrics.traces import dense_unit_macs as dense_unit_macs
from dyn_jax.metrics.traces import example_shares as example_shares
from dyn_jax.metrics.traces import executed_macs as executed_macs
from dyn_jax.metrics.traces import executed_unit_macs as executed_unit_macs
from dyn_jax.metrics.traces import increase as increase
from dyn_jax.metrics.traces import occupancy_rate as occupancy_rate
from dyn_jax.metrics.traces import recovery as recovery
from dyn_jax.metrics.traces import unit_change as unit_change
