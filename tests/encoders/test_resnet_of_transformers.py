"""Our ResNet against that of transformers, with the same weights."""

import re

import pytest
import torch
from torch import nn

from drifting.encoders.pretrained import PretrainedFeatures
from drifting.encoders.resnet import ResNet, ResNetFeatures

STATISTICS = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
IMAGES = 2 * torch.rand(2, 3, 33, 33, generator=torch.Generator().manual_seed(1)) - 1


@pytest.mark.parametrize("arch", ["resnet10", "resnet18", "resnet50"])
def test_own_resnet_is_that_of_the_library(arch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    own = ResNet(arch, (3, 33, 33), num_classes=None, small_stem=False, width=4, statistics=STATISTICS)
    for module in own.modules():
        if isinstance(module, nn.BatchNorm2d):
            # At 0, where bottlenecks begin, nothing of their convolutions would be seen.
            module.weight.data.uniform_(0.5, 1.5)
    sizes = [own.map_shapes[f"stage{number}"][0] for number in (1, 2, 3, 4)]
    kind, depths = {
        "resnet10": ("basic", [1, 1, 1, 1]),
        "resnet18": ("basic", [2, 2, 2, 2]),
        "resnet50": ("bottleneck", [3, 4, 6, 3]),
    }[arch]
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=sizes, depths=depths, layer_type=kind)
    other = transformers.ResNetModel(config)

    def ours(name: str) -> str:
        name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        name = re.sub(r"encoder\.stages\.(\d)\.layers", lambda found: f"layer{int(found[1]) + 1}", name)
        name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        kinds = {"convolution": "conv", "normalization": "bn"}
        return re.sub(r"layer\.(\d)\.(\w+)\.", lambda found: f"{kinds[found[2]]}{int(found[1]) + 1}.", name)

    other.load_state_dict({name: own.state_dict()[ours(name)] for name in other.state_dict()})
    names, images = ["stage1", "stage2_std", "stage3", "stage4_mean"], IMAGES
    expected = PretrainedFeatures(other, names, image_shape=(3, 33, 33), statistics=STATISTICS, normalize=False)(images)
    for name, value in ResNetFeatures(own, names)(images).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
