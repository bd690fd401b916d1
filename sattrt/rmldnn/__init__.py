"""Configurations of rmldnn's satellite image classification tutorial, run as they are (docs/from-rmldnn.md)."""
