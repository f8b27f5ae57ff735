"""Parts for dynext that it finds by the entry points in ``pyproject.toml``; nothing has to be imported by hand."""
