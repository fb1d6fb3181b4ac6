"""A recipe from end to end with a small model, before the real one runs."""
