"""Answers to prompts: engines that generate them, and how tokens are drawn."""
