"""What a run tells: metric writers, progress, tables."""
