"""Copies of items in other texts: what is searched for, where it may be, and what counts. No torch."""
