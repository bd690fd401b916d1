"""How fast and how accurate each engine is, on the tiles of the test split, by one method for all."""
