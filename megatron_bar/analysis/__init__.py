"""What a run amounts to: how its models score, how its router chooses, one page that says both.

`runs` finds what stages left on disk, `scores` reads the evaluations and compares the models,
`routing` records and describes the router, `plots` draws, `report` writes report.html.
"""
