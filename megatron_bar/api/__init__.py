"""The functions that programs and notebooks call; `from megatron_bar import` loads them lazily.

`checkpoints` has import, branch, merge and export; `training` a function for each kind of training;
`runs` whole recipes; `model` a loaded model that answers. The command line calls the same.
"""
