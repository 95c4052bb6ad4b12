"""Data: sources (files on disk), transforms (records to views), pipeline (views to batches)."""
