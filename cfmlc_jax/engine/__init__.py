"""The engine: it runs systems, and knows none."""
