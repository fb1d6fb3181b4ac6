"""Modules that vLLM's Python imports, from this folder alone: none may need our packages."""
