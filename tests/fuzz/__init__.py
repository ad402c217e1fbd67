"""Hostile bytes for everything that reads bytes: `make fuzz SECONDS=60`, and a short part in `make test`.

`targets` says what is fed and what must hold, `guard` bounds one input, `inputs` makes them, `__main__` runs them for
as long as one likes: with coverage, by atheris, where it is installed. What was found once is in `corpus/`, and each
test run feeds it again.
"""
