"""Samples out of a net alone: every method behind `dynext.synthesize`, and what judges their samples."""
