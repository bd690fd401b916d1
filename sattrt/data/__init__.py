"""Labelled tiles: where they lie, what is in them, how they are split, and how they reach the network."""
