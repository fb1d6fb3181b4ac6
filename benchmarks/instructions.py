"""Our instruction following against lm-eval's, on the same answers: agreement, time, start.

    python -m benchmarks.instructions ifeval_first400.jsonl texts.jsonl [--answers 20]

The first file holds IFEval's items; the second's texts ("output" or "text" of each line, or of its
instances) are taken as answers, each to every item. Sentences are counted by a trained splitter in
lm-eval, which it downloads when it is imported; where that can't be had these are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_bar.runtime.console import console


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _answers(path: Path) -> Iterator[str]:
    for line in _lines(path):
        for one in line.get("instances", [line]):
            if text := one.get("output") or one.get("text"):
                yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("items", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--answers", type=int, default=20)
    args = parser.parse_args()
    starts = {}
    start = time.process_time()
    from megatron_bar.verifiers.instructions import followed

    starts["ours"] = time.process_time() - start
    start = time.process_time()
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

    starts["lm-eval"] = time.process_time() - start

    def theirs(item: dict[str, Any], answer: str) -> list[bool]:
        example = InputExample(item["key"], item["instruction_id_list"], item["prompt"],
                               item["kwargs"])
        return test_instruction_following_strict(example, answer).follow_instruction_list

    texts = sorted(set(_answers(args.texts)), key=len)
    texts = texts[:: max(len(texts) // args.answers, 1)]
    seconds = Counter()
    same, differ, failed = Counter(), Counter(), Counter()
    for item in _lines(args.items):
        for number, name in enumerate(item["instruction_id_list"]):
            one = item | {"instruction_id_list": [name], "kwargs": [item["kwargs"][number]]}
            for text in texts:
                start = time.process_time()
                mine = followed(text, one)[name]
                seconds["ours"] += time.process_time() - start
                start = time.process_time()
                try:
                    (other,) = theirs(one, text)
                except LookupError:  # the splitter
                    failed[name] += 1
                    continue
                finally:
                    seconds["lm-eval"] += time.process_time() - start
                (same if mine == other else differ)[name] += 1
    judged = same.total() + differ.total() + failed.total()
    table = Table("", "CPU s to import", "ms a judgement", box=None)
    for who in starts:
        table.add_row(who, f"{starts[who]:.2f}", f"{1000 * seconds[who] / judged:.3f}")
    console.print(table)
    console.print(f"{same.total()} of {same.total() + differ.total()} judgements agree; "
                  f"differ: {dict(differ)}; lm-eval can't judge: {dict(failed)}", markup=False)


if __name__ == "__main__":
    main()
