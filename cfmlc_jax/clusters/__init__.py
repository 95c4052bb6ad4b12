"""Clusters that start several processes of one command: which one did, and how its processes share GPUs."""
