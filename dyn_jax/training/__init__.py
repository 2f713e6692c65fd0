"""Training: recipes are values (`recipe`), one loop runs them (`loop`), `embedded` names those that ship.

`adversarial` makes a recipe that trains on attacked images.
"""

from dyn_jax.training.adversarial import adversarial as adversarial
from dyn_jax.training.adversarial import both as both
