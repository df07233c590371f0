"""Runs side by side: who is best, by how much, for whom, and whether it is real.

runs → analysis → figures, page: what each reads is what the one before it made.
"""
