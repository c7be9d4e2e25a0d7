"""Structured hostile answers by the million, through the whole corridor, against an oracle."""
