"""The parallel layouts that every promise is tested in."""

from megatron_bar.runtime.layout import Layout

DENSE = {
    "tp1": Layout(),
    "tp2": Layout(2, tensor=2),
    "pp2": Layout(2, pipeline=2),
    "dp2": Layout(2),
    "tp2pp2": Layout(4, tensor=2, pipeline=2),
    "tp2cp2": Layout(4, tensor=2, context=2),
}
EXPERTS = {
    "tp1": Layout(),
    "tp2": Layout(2, tensor=2),
    "pp2": Layout(2, pipeline=2),
    "dp2": Layout(2),
    "ep2": Layout(2, expert=2),
    "cp2ep2": Layout(2, expert=2, context=2),
    "tp2ep2": Layout(4, tensor=2, expert=2),
    "tp2ep2etp1": Layout(2, tensor=2, expert=2, expert_tensor=1),
    "tp2pp2ep2": Layout(4, tensor=2, pipeline=2, expert=2, expert_tensor=1),
    "tp2pp2": Layout(4, tensor=2, pipeline=2),
}
