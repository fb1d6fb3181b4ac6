"""Reinforcement learning on verifiable rewards: objective, policy, prompts and trainers."""
