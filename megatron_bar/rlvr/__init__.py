"""Reinforcement learning on verifiable rewards: rollouts, verifiers, sandbox and trainer."""
