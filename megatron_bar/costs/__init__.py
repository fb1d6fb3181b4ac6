"""Needs and costs of stages: operations, memory, traffic and time, reckoned and not measured."""
