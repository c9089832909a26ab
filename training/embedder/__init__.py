"""The embedders: EfficientNet with GeM pooling, trained with ArcFace and a cross-batch memory."""
