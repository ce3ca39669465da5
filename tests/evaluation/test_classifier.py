import pytest
import torch

from drifting.checkpoint import load_weights
from drifting.encoders.base import Frozen
from drifting.errors import InputError
from drifting.evaluation.extractors import Classifier


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 12)])
def test_shapes_follow_the_images(shape):
    classifier, images = Classifier(shape, 7, width=4), torch.rand(5, *shape)
    assert classifier(images).shape == (5, 7)
    assert classifier.embed(images).shape == (5, 128)


def test_logits_are_a_linear_map_of_the_embedding():
    classifier = Classifier((1, 8, 8), 3, width=4).eval()
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(classifier(images), classifier.embed(images) @ classifier.output.weight.T + classifier.output.bias)


def test_output_depends_on_the_image_alone():
    classifier = Frozen(Classifier((1, 8, 8), 3, width=4))
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(classifier(images)[2:3], classifier(images[2:3]))


def test_weights_of_another_width_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        load_weights(Classifier((1, 8, 8), 3, width=4), Classifier((1, 8, 8), 3, width=8).state_dict(), "extractor")


def test_images_too_small_to_halve_are_refused():
    with pytest.raises(InputError, match="at least 8 x 8"):
        Classifier((1, 4, 8), 3)
