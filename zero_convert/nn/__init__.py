"""Modules that live on in the converted network."""
