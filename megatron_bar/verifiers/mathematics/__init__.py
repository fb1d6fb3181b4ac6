"""The parts of the verifier `math`, from a response to a verdict.

    answer.py     finds the final answer in a response
    spelling.py   brings Unicode, LaTeX and Markdown to one spelling
    units.py      knows what units are called, and how they relate
    numbers.py    reads numbers in all spellings
    forms.py      reads an answer: a value, a list, an interval, an equation, a matrix, words
    compare.py    compares two of these, part by part
    algebra.py    compares two formulas, by sympy; math-verify's parser reads them
    worker.py     is the process that does the last two where algebra is needed

All but the last two are plain Python that takes milliseconds, and run in the caller's process.
"""
