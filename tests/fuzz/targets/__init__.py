"""The ways in.  A module here has ``NAME`` (and a folder of that name in the corpus), ``fresh`` (a new input from dice) and ``Target``, a context
manager whose ``run`` takes one input and raises for a bug, and whose end checks that nothing is left.
"""
