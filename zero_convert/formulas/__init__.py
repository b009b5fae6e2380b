"""Exact mathematics in numpy: the closed forms that schemes give."""
