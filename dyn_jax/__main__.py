"""``python -m dyn_jax``: the same as the command ``dyn-jax``."""

import sys

from dyn_jax.cli import main

sys.exit(main())
