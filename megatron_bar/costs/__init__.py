"""What stages need and cost: operations, memory, traffic and time, reckoned and not measured."""
