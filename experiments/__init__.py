"""One script a table or figure of the papers; results/ holds what they measured. Run from the repository root."""
