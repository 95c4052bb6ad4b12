"""Data: sources (files on disk -> records), views (records -> views), pipeline (views -> batches)."""
