"""The garment detector: Faster R-CNN with a VoVNet-FPN backbone, one class, trained with detectron2."""
