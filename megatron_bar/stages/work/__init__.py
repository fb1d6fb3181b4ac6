"""What the larger stages do when they run; loads torch, which their classes don't."""
