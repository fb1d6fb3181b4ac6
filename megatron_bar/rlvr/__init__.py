"""Answers and what they are worth: rollouts, verifiers and, in a later step, the RL trainer."""
