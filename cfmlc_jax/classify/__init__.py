"""The system of classifiers."""
