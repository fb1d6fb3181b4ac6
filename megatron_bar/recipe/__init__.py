"""The user's YAML as typed dataclasses, its validation, and the graph of stages it describes."""
