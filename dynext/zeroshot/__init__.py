"""Data-free: rows synthesized from a teacher alone, and the exits distilled on them."""
