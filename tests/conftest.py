"""Settings of every test."""
