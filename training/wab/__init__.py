"""The Watch and Buy data set: product photos and live clips with boxes that name garment instances."""
