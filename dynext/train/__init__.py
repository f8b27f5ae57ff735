"""Training with data, or with a teacher in its place: one file a published method, all through `dynext.fitting`."""
