"""What an evaluation finds, as types."""
