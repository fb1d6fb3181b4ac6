"""The work of the larger stages; loads torch, which their classes don't."""
