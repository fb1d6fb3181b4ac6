"""One module a stage, but one for all that train on rows, and one for all that merge.

`registry` lists them.
"""
