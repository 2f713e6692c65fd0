"""Training, and saving what was trained."""
