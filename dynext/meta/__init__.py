"""Exits as tasks: parameters that learn each exit, and new classes at each exit, from a few labelled rows."""
