"""From tiles to a checkpoint: configuration, ranks, the loop, what is saved and logged."""
