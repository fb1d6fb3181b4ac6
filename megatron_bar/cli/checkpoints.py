"""Commands that make and prove a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_bar.runtime.errors import BarError


def import_(args: argparse.Namespace) -> None:
    from megatron_bar.api import checkpoints

    checkpoints.import_hf(args.hf_dir, args.out, dtype=args.dtype, processes=args.processes)
    print(f"{args.out} is written")


def export(args: argparse.Namespace) -> None:
    from megatron_bar.api import checkpoints

    checkpoints.export_hf(
        args.checkpoint,
        args.out,
        chat_template=args.chat_template,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        active=args.active,
        processes=args.processes,
    )
    print(f"{args.out} is written")


def branch(args: argparse.Namespace) -> None:
    from megatron_bar.api import checkpoints

    checkpoints.branch(
        args.anchor,
        args.out,
        name=args.name,
        pretrained=args.pretrained,
        seed=args.seed,
        processes=args.processes,
    )
    print(f"{args.out} is written: expert 0 anchor, expert 1 {args.name}")


def merge(args: argparse.Namespace) -> None:
    from megatron_bar.api import checkpoints
    from megatron_bar.checkpoints.average import deviation_table
    from megatron_bar.checkpoints.merging import rule_named
    from megatron_bar.recipe.fields import faults
    from megatron_bar.recipe.schema import Merge
    from megatron_bar.runtime.console import console

    settings = Merge(args.rule or "published", args.scale, args.density, args.t)
    if found := faults(settings, "--"):
        raise BarError(found[0])
    rule = args.rule and rule_named(args.rule, args.scale, args.density, args.t, args.seed)
    merged = checkpoints.merge(
        args.models,
        args.out,
        anchor=args.anchor,
        average=args.average,
        weights=args.weights,
        anchor_ffn=args.anchor_ffn,
        experts=args.experts,
        rule=rule,
        processes=args.processes,
    )
    if merged.by_group:
        console.print(deviation_table(merged.by_group))
    print(f"{args.out} is written: experts {', '.join(merged.experts)}")


def verify(args: argparse.Namespace) -> None:
    from megatron_bar.checkpoints.hub import local_folder
    from megatron_bar.checkpoints.verify import (
        check_same_model,
        fits_in_memory,
        verify_folder,
        verify_tensors,
    )

    if args.hf_dir is None:
        print(verify_folder(local_folder(args.checkpoint)))
        return
    checkpoint, hf_dir = Path(args.checkpoint), local_folder(args.hf_dir)
    model = check_same_model(checkpoint, hf_dir)
    if not args.tensors and fits_in_memory(model, args.gradients):
        _verify_numbers(args, checkpoint, hf_dir)
        return
    if not args.tensors:
        print("both models don't fit into memory; comparing tensor by tensor")
    print(f"all {verify_tensors(checkpoint, hf_dir)} tensors are equal")


def _verify_numbers(args: argparse.Namespace, checkpoint: Path, hf_dir: Path) -> None:
    from megatron_bar.checkpoints.parity import GRADIENT_TOLERANCE, compare_with_transformers
    from megatron_bar.runtime.distributed import process_groups
    from megatron_bar.runtime.layout import Layout

    with process_groups(Layout()):
        parity = compare_with_transformers(checkpoint, hf_dir, args.tolerance, args.gradients)
    for difference in parity.logits:
        print(f"{difference.text}: logits differ by {difference.relative:.1e}")
    if parity.first is not None:
        raise BarError(
            f"{checkpoint} and {hf_dir} differ: the first module to diverge is "
            f"{parity.first.module}, by {parity.first.relative:.1e} ({parity.first.text})"
        )
    print(f"equal within {args.tolerance:.0e}")
    if parity.untested is not None:
        print(f"not proven, for want of memory: {parity.untested}")
    if parity.gradient is not None:
        print(
            f"gradients equal within {GRADIENT_TOLERANCE:.0e}: the worst, "
            f"{parity.gradient.module.removeprefix('the gradient of ')}, differs by "
            f"{parity.gradient.relative:.1e}"
        )
