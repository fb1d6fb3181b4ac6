"""One module a stage. A new stage is one file here and one line in `registry`."""
