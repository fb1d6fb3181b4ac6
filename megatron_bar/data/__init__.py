"""Training data: where examples come from, how they become tokens, rows and batches.

`sources` reads conversations and texts, `chat` renders conversations and says which tokens carry
loss, `encoding` joins the two, `packing` fills rows of fixed length, `batches` orders the rows.
"""
