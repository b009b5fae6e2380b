"""Feeds damaged and hostile model files to the readers: `python -m benchmarks.fuzz --minutes 5`, or `--counts`.

A case is made from a seed, so that a number names it and it can be made again. `corpus.py` makes sound files,
`mutations.py` damages them with knowledge of their format, `run.py` reads them and says what went wrong: an exception
that is no error of ours, more than 5 seconds, or memory above what the process had and 256 MiB.
"""
