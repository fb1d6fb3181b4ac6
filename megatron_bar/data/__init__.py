"""Training data: where examples come from, how they become tokens, rows and batches.

`files` says what a path names, `records` and `tables` read it, `forms` make messages of a record;
`sources` draws texts and conversations from all this, and `bad_items` says what becomes of those
that can't be used. `chat` renders conversations and says which tokens carry loss, `encoding` makes
tokens of both, `store` keeps them on disk. `packing` (for conversations) and `blend` (for texts)
are the two kinds of `rows`; `mixture` says how much of each source goes in. `batches` says which
rows a step takes, `batch` makes tensors of them.
"""
