"""Readers of data sets: Watch and Buy, COCO JSON, a folder per identity, CSV. All return annotated images."""
