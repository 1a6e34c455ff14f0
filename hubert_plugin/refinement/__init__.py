"""The whole refinement as one resumable run: rounds → steps → commands.

A configuration lists rounds (``config.py``). They become steps (``plan.py``), each an ordinary verb of the command
line, run in a process of its own (``execute.py``). What a step was made from and what it left is on record
(``record.py``), so that a second run does what is missing or changed, and nothing else (``judge.py``, ``run.py``).

Nothing here imports torch but ``report.py`` and ``check.py``, which run in processes of their own.
"""
