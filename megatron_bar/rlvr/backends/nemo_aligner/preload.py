"""Imported once by the server that ranks are forked from: the trainer takes long to import."""

from megatron_bar.rlvr.backends.nemo_aligner import accommodations

accommodations.install()
