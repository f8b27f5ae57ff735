"""Training with data, one file a published method; all of it goes through `dynext.fit`."""
