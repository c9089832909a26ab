"""A rendered world of garments in the layout of Watch and Buy, and the small checkpoints trained on it."""
