"""Rules that several schemes share."""
