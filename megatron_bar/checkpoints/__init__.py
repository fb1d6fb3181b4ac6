"""Distributed checkpoints: read, write, Hugging Face in and out, branch, merge, verify.

A checkpoint of ours is a folder in Megatron-Core's `torch_dist` format, which any parallel layout
loads, with `model.json` (sizes, experts) and `hf/` (tokenizer, chat template, generation config)
beside the tensors. Converters stream: they hold a few tensors at a time, never a model.
"""
