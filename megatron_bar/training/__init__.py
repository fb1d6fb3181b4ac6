"""The training loop and what it stands on: shared by every stage that trains."""
