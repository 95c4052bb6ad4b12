"""Mutation testing by Cosmic Ray: which mutants, and which tests."""
