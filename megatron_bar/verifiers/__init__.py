"""Verifiers score answers: one file a rule, one line in `registry` that registers it.

A verifier is `score(prompt, response, reference) -> float in [0, 1]`: the user's last words, the
model's answer, and what the verifier's file says a reference is. Verifiers may be called from any
thread, and return in bounded time whatever the response holds.

Nothing is imported here: the processes of `sandbox` and `mathematics` start without what we use.
"""
