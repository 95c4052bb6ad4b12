"""Public weights by name: the table, the cache, downloads, and conversion on the way in."""
