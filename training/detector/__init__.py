"""The detector: Faster R-CNN with a VoVNet-FPN or ResNet-FPN backbone; ours finds garments, as one class."""
