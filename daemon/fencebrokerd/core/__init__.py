"""The broker's decisions.  No I/O, no clock, no descriptors, no logging: time comes in as an argument, descriptors are numbers.

Rules of this folder
  ``events.py`` lists every change of state there is; ``state.py`` folds events into state, and nothing else changes state.
  A decision checks everything first, then emits; a Refusal leaves the state as it was.
  What is to be done outside is returned as effects (``effects.py``); the shell carries them out in order.
  Only pure modules of the standard library and ``fencebroker.{model,errors,wire}`` are imported (``tests/test_layering.py``).
"""
