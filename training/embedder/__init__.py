"""The embedders: EfficientNet, GeM pooling, ArcFace, cross-batch memory."""
