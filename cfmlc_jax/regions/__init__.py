"""The system of classifiers of regions: the class branch of a detector, trained on features that it stored."""
