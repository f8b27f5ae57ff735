"""Self-supervised exit alignment: early exits that speak the final exit's language."""
