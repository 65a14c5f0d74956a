"""fencectl, the shell tool: what is this waiting for, and who should have signalled it?

``main`` turns everything that can go wrong into one line and one exit code; each module of verbs asks the broker and hands values to
``output``, which alone writes; ``render`` turns values into text and lets no control character through.
"""
