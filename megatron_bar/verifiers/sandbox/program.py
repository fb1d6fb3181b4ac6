"""Runs a whole program with its standard input and output in files."""

from __future__ import annotations

import json
import os
import sys
import types

from megatron_bar.verifiers.sandbox import solution, wire


def main(source: int, stdin: int, stdout: int) -> None:
    """`source`, `stdin`, `stdout`: files. What comes after the program's end isn't written."""
    code = solution.first_that_compiles(json.loads(wire.read_all(source))["sources"], "program")
    os.close(source)
    os.lseek(stdin, 0, os.SEEK_SET)
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.set_int_max_str_digits(0)
    try:
        exec(code, module.__dict__)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    finally:
        sys.stdout.flush()
