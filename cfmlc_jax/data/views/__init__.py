"""From the bytes of an image to views."""
