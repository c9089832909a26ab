"""A rendered world in the layout of the Watch and Buy data set, and small checkpoints trained on such a world.

The data set cannot be shipped with this project, so the demo, the tests and the benchmarks run on a world that a
program draws: shops sell garments, each with product photos and a live clip in which a host shows it. Photos, clips
and annotations have the files and formats of the data set, so that all code runs on both.

The world is made hard in the way the data set is: every garment has lookalikes in the same colours (`designs`), other
garments are in view, and photos differ from clips in angle, folds, light and background. The modules build on each
other: `designs` decides what a garment is, `textures` and `sprites` draw it, `scene` composes images and their
annotations, `photos` and `clips` are the two kinds of images, and `world` writes the files.
"""
