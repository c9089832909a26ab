"""Training of the detector and the embedders; runs from the checkout, never installed."""
