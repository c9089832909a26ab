"""Training of the detector and the embedders, run from a checkout; not part of the installed package."""
