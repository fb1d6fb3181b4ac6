"""Evaluation of models on held-out items and lm-eval's tasks.

`model` asks a checkpoint of ours, in any layout, held-out items and scores its answers with the
verifiers; `answers` shares the items among the ranks. `suite` runs benchmarks of lm-eval on an
exported folder; `suites/` says which.
"""
