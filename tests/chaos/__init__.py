"""The broker is killed while many processes use it, and nobody may notice.

``crowd.py`` starts the broker and the workers, ``killing.py`` kills, ``attacking.py`` attacks, and the workers check what they see:
``producing.py``, ``consuming.py``, ``visiting.py``.  ``python -m tests.chaos --kills 10000`` is ``make chaos``.
"""
