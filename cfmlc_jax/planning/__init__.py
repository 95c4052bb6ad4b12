"""`main --mode=plan`: what a run will need, before any data is read."""
