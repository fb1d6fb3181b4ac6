"""Results of a run: how its models score, how its router chooses, one page that says both.

`runs` finds what stages left on disk, `scores` reads the evaluations and compares the models, with
`intervals`; `suites` reads lm-eval's. `routing` records and describes the router, `flow` is the
graph of stages, `trained` what each trained. `plots` draws `panel`s, `report` writes report.html
from `templates/`, with the `sections` that other commands leave.
"""
