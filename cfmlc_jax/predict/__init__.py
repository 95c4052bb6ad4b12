"""The command that classifies images by a checkpoint."""
