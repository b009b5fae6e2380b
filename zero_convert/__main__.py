"""`python -m zero_convert` is `zero-convert`."""

from .cli import program

if __name__ == "__main__":
    program()
