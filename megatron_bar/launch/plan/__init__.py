"""Needs and costs of a recipe, worked out before any of it is spent."""
