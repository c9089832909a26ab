"""livematch finds which product a live-shopping clip shows.

    client = livematch.Client()
    for detection in client.recognize_image("dress.jpg"):
        print(detection.box, detection.score)
    matches = livematch.match(livematch.read_features(images), livematch.read_features(videos))

The public names are listed in `__init__.pyi`. Each is imported on first use, so that `import livematch` stays cheap.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
