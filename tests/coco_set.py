"""TensorFlow data sets that tests prepare: one like coco_captions, and one without captions."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class _Given(tfds.core.GeneratorBasedBuilder):
    """Prepares what `prepared` was given."""

    VERSION = tfds.core.Version("1.1.0")
    url_infos = None  # nothing is downloaded, so TFDS need not look for checksums

    def __init__(self, given, folder):
        self._given = given
        super().__init__(data_dir=str(folder), file_format="array_record")

    def _info(self):
        features = tfds.features.FeaturesDict(self.features())
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(each) for name, each in self._given[0].items()}

    def _generate_examples(self, numbers):
        _, images, texts = self._given
        for number in numbers:
            yield number, self.example(number, png(images[number]), texts[number])


class CocoCaptions(_Given):
    """The features of TFDS's own coco_captions/2014, word by word."""

    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="2014", description="for tests"),)

    def features(self):
        return {
            "image": tfds.features.Image(encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(num_classes=80),
                    "is_crowd": np.bool_,
                }
            ),
            "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
        }

    def example(self, number, image, texts):
        box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        thing = {"id": 1, "area": 5, "bbox": box, "label": 3, "is_crowd": False}
        return {
            "image": image,
            "image/filename": f"{number}.png",
            "image/id": number,
            "objects": [thing] * (number % 3),
            "captions": [{"text": text, "id": k} for k, text in enumerate(texts)],
        }


class Drawings(_Given):
    """Images with labels, and without captions."""

    def features(self):
        return {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}

    def example(self, number, image, texts):
        return {"image": image, "label": 1}


def prepared(builder, folder, splits, images, texts):
    """Prepares a set in a data_dir.

    splits: name -> numbers of its images. images: number -> uint8 [h, w, 3], or None for one that
    cannot be read. texts: number -> its captions.
    """
    builder((splits, images, texts), folder).download_and_prepare()


def png(image):
    if image is None:
        return b"broken"
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
