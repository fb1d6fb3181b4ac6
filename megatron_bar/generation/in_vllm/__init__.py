"""What vLLM's Python imports, from this folder alone: nothing here may need our packages."""
