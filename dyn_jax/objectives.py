"""Which adversarial loss an attack ascends."""
