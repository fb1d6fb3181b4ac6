"""The lowest floor: devices, process groups, Megatron versions, files, errors, the console.

What differs between CPU and GPU, or between Megatron versions, lives here and nowhere else.
"""
