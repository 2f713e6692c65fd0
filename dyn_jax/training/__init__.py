"""Training: recipes are values (`recipe`), one loop runs them (`loop`), `embedded` names those that ship."""
