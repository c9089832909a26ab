"""Check that the features of products and of clips may be compared."""

import logging

from livematch.features.table import Features, check_comparable, require_selection, without_label

_log = logging.getLogger(__name__)


def check_pairing(products: Features, clips: Features, *, same_label: bool) -> None:
    """Check both sides; a model identity that is unknown on one side causes a warning.

    Raises:
        FeaturesError: the sides are exchanged or have embeddings of different models or sizes, or boxes have no label
            although `same_label` is set.
    """
    require_selection(products, "images", "queries (product photos)")
    require_selection(clips, "frames", "a gallery (clips)")
    if not len(products) or not len(clips):
        return
    check_comparable(products, clips.origin, clips.model_identity, clips.embedding_size)
    if not products.model_identity or not clips.model_identity:
        _log.warning("features without a model identity: cannot tell whether both are of the same models")
    if same_label:
        require_labels(products)
        require_labels(clips)
        if set(products.labels).isdisjoint(clips.labels):
            labels = ", ".join(dict.fromkeys(products.labels))
            _log.warning("no box of %s has a label of %s: %s", clips.origin, products.origin, labels)


def require_labels(features: Features) -> None:
    """Raise FeaturesError if the label of a box is unknown."""
    if "" in features.labels:
        raise without_label(features.origin, features.sources[features.labels.index("")])
