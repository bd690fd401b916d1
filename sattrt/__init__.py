"""sattrt: labelled satellite tiles in, a fast, checked inference engine out.

The stages hand over through files: `sattrt data`, `train`, `export`, `bench`; `sattrt.runtime` is
what an edge program imports.
"""

__version__ = "0.1.0"
