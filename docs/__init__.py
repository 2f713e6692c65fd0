"""The pages of the site, and what writes their tables from records (`python -m docs.tables`)."""
