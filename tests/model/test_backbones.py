# SPDX-License-Identifier: Apache-2.0
"""Backbones give four strides, keep what is frozen, and take weights of their own network only."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from panoptic_depth_model.backbones import BACKBONES, build_backbone, load_pretrained


@pytest.mark.parametrize("name", BACKBONES)
def test_features_lie_at_strides_4_to_32(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
        features = backbone(torch.empty(2, 3, 64, 96))
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(feature.shape) for feature in features] == expected


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048)), ("swin_t", (96, 192, 384, 768))],
)
def test_channels_are_those_of_the_network(name, channels):
    with torch.device("meta"):
        assert build_backbone(name).channels == channels


def test_an_unknown_backbone_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet7'; expected one of resnet18, .*swin_s"):
        build_backbone("resnet7")


def test_caffe_strides_sit_in_the_first_convolution():
    with torch.device("meta"):
        plain, caffe = (build_backbone(name) for name in ("resnet50", "resnet50_caffe"))
    strides = [[(s[0].conv1.stride, s[0].conv2.stride) for s in b.stages] for b in (plain, caffe)]
    one, two = (1, 1), (2, 2)
    assert strides[0] == [(one, one), *[(one, two)] * 3]
    assert strides[1] == [(one, one), *[(two, one)] * 3]


def test_resnet_features_are_what_torchvision_computes():
    torch.manual_seed(0)
    classifier = torchvision.models.resnet18(weights=None).eval()
    backbone = build_backbone("resnet18").eval()
    trunk = {k: v for k, v in classifier.state_dict().items() if not k.startswith("fc.")}
    renamed = {
        our: trunk[their] for our, their in zip(backbone.state_dict(), trunk, strict=True)
    }  # both list their tensors in the order of the computation
    backbone.load_state_dict(renamed)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        pooled = F.adaptive_avg_pool2d(backbone(image)[-1], 1).flatten(1)
        torch.testing.assert_close(classifier.fc(pooled), classifier(image))


def test_every_stage_of_a_swin_is_normalized_over_its_channels():
    torch.manual_seed(0)
    backbone = build_backbone("swin_t").eval()
    with torch.inference_mode():
        for feature in backbone(torch.randn(1, 3, 64, 64)):
            assert feature.mean(1).abs().max() < 1e-4
            assert (feature.var(1, correction=0) - 1).abs().max() < 2e-2


def statistics_of(backbone):
    return {k: v.clone() for k, v in backbone.state_dict().items()}


def train_once(backbone):
    """One step of gradient descent on everything that may learn; returns the tensors' names that changed."""
    before = statistics_of(backbone)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone.train()
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    return {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}


def test_frozen_parts_keep_weights_and_statistics_in_training():
    backbone = build_backbone("resnet18")
    backbone.freeze(2, norms=False)
    changed = train_once(backbone)
    assert changed
    assert not {name for name in changed if name.startswith(("stem.", "stages.0."))}
    assert "stages.1.0.bn1.running_mean" in changed
    assert "stages.1.0.conv1.weight" in changed


def test_norms_stay_frozen_where_they_are_those_of_several_gpus():
    """Which a training on several GPUs puts in the place of the others before it begins."""
    backbone = build_backbone("resnet18")
    backbone.freeze(2, norms=True)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(backbone).train()
    norms = [module for module in converted.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    assert len(norms) == 20
    assert not any(norm.training for norm in norms)


def test_frozen_norms_keep_scales_and_statistics_in_training():
    backbone = build_backbone("resnet18")
    backbone.freeze(0, norms=True)
    changed = train_once(backbone)
    assert "stem.0.weight" in changed
    norms = ("running_mean", "running_var", "num_batches_tracked")
    assert not {name for name in changed if name.endswith(norms) or ".bn" in name or ".downsample.1." in name}


def test_nothing_is_frozen_by_itself():
    backbone = build_backbone("resnet18")
    assert train_once(backbone) == set(backbone.state_dict())


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def test_weights_of_a_classifier_are_taken_over(resnet18_file):
    backbone = build_backbone("resnet18")
    load_pretrained(backbone, "resnet18", str(resnet18_file))
    state = torch.load(resnet18_file, weights_only=True)
    assert torch.equal(backbone.stem[0].weight, state["conv1.weight"])
    assert torch.equal(backbone.stages[3][1].bn2.running_var, state["layer4.1.bn2.running_var"])
    assert torch.equal(backbone.stages[1][0].downsample[0].weight, state["layer2.0.downsample.0.weight"])


def test_an_old_file_without_counters_and_with_another_classifier_is_taken_over(tmp_path, resnet18_file):
    state = torch.load(resnet18_file, weights_only=True)
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    state["fc.weight"], state["fc.bias"] = torch.zeros(7, 512), torch.zeros(7)
    torch.save(state, tmp_path / "old.pth")
    backbone = build_backbone("resnet18")
    load_pretrained(backbone, "resnet18", str(tmp_path / "old.pth"))
    assert torch.equal(backbone.stem[0].weight, state["conv1.weight"])


def test_a_swins_output_norms_are_not_the_classifiers(tmp_path):
    torch.manual_seed(2)
    classifier = torchvision.models.swin_t(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "swin_t.pth")
    backbone = build_backbone("swin_t")
    load_pretrained(backbone, "swin_t", str(tmp_path / "swin_t.pth"))
    block = classifier.features[3][1].mlp[0].weight
    assert torch.equal(backbone.stages[1][1][1].mlp[0].weight, block)
    assert (backbone.norms[3].weight == 1).all()


@pytest.mark.parametrize("name", ["resnet34", "resnet50_caffe", "swin_t"])
def test_weights_of_another_network_are_refused_and_nothing_changes(resnet18_file, name):
    backbone = build_backbone(name)
    before = statistics_of(backbone)
    with pytest.raises(ValueError, match=rf"resnet18\.pth: not the weights of {name}: \d+ tensors"):
        load_pretrained(backbone, name, str(resnet18_file))
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


LAYERS = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "downsample": "branch1"}
RUNNING = {"weight": "bn_gamma", "bias": "bn_beta", "running_mean": "bn_running_mean", "running_var": "bn_running_var"}


def caffe2_blobs(classifier: torchvision.models.ResNet) -> dict[str, np.ndarray]:
    """The classifier as detectron2's MSRA/R-50.pkl stores it, BGR, written out layer by layer."""
    blobs = {"conv1_w": classifier.conv1.weight.flip(1), "conv1_b": torch.ones(64), "fc1000_w": torch.ones(1000, 2048)}
    blobs |= norm_blobs("res_conv1", classifier.bn1)
    for stage, blocks in enumerate((classifier.layer1, classifier.layer2, classifier.layer3, classifier.layer4), 2):
        for index, block in enumerate(blocks):
            pairs = {"conv1": (block.conv1, block.bn1), "conv2": (block.conv2, block.bn2)}
            pairs["conv3"] = (block.conv3, block.bn3)
            if block.downsample is not None:
                pairs["downsample"] = (block.downsample[0], block.downsample[1])
            for name, (convolution, norm) in pairs.items():
                blob = f"res{stage}_{index}_{LAYERS[name]}"
                blobs[f"{blob}_w"] = convolution.weight
                blobs |= norm_blobs(blob, norm)
    return {name: values.detach().numpy() for name, values in blobs.items()}


def norm_blobs(name: str, norm: torch.nn.BatchNorm2d) -> dict[str, torch.Tensor]:
    return {f"{name}_{kind}": getattr(norm, ours) for ours, kind in RUNNING.items()}


def randomized_resnet50() -> torchvision.models.ResNet:
    torch.manual_seed(3)
    classifier = torchvision.models.resnet50(weights=None).eval()
    with torch.no_grad():
        for module in classifier.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.uniform_(-0.1, 0.1)
    return classifier


def test_a_caffe2_resnet_is_taken_over(tmp_path):
    classifier = randomized_resnet50()
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(caffe2_blobs(classifier), protocol=2))
    caffe, plain = build_backbone("resnet50_caffe").eval(), build_backbone("resnet50").eval()
    load_pretrained(caffe, "resnet50_caffe", str(path))
    torch.save(classifier.state_dict(), tmp_path / "resnet50.pth")
    load_pretrained(plain, "resnet50", str(tmp_path / "resnet50.pth"))
    theirs, ours = plain.state_dict(), caffe.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_caffe2_norm_without_statistics_is_a_scale_and_a_shift(tmp_path):
    blobs = caffe2_blobs(randomized_resnet50())
    for name in list(blobs):
        if name.endswith(("_bn_running_mean", "_bn_running_var")):
            del blobs[name]
    renamed = {n.replace("_bn_gamma", "_bn_s").replace("_bn_beta", "_bn_b"): values for n, values in blobs.items()}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": renamed}))
    backbone = build_backbone("resnet50_caffe").eval()
    load_pretrained(backbone, "resnet50_caffe", str(tmp_path / "R-50.pkl"))
    norm, x = backbone.stages[0][0].bn1, torch.randn(1, 64, 3, 3)
    scale, shift = (torch.from_numpy(renamed[f"res2_0_branch2a_bn_{kind}"])[:, None, None] for kind in "sb")
    torch.testing.assert_close(norm(x), scale * x + shift)


def test_a_pickle_of_another_network_is_refused(tmp_path):
    for contents, message in (
        ({"res2_0_branch3_w": np.ones(2)}, "res2_0_branch3_w is no tensor of a Caffe2 ResNet"),
        ({"fc1000_w": np.ones(2)}, "no conv1_w among 1 tensors"),
    ):
        (tmp_path / "other.pkl").write_bytes(pickle.dumps(contents))
        with pytest.raises(ValueError, match=message):
            load_pretrained(build_backbone("resnet50_caffe"), "resnet50_caffe", str(tmp_path / "other.pkl"))


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("not a network")
    torch.save({"model": {}}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match=r"text\.pth: no file of tensors, or cut short"):
        load_pretrained(build_backbone("resnet18"), "resnet18", str(tmp_path / "text.pth"))
    with pytest.raises(ValueError, match=r"nested\.pth: expected the state dict of torchvision's resnet18"):
        load_pretrained(build_backbone("resnet18"), "resnet18", str(tmp_path / "nested.pth"))


def test_an_unknown_name_of_weights_is_refused_with_the_known_ones():
    known = r"'IMAGENET22K': no such file, .* for resnet50_caffe are IMAGENET1K_V1, IMAGENET1K_V2"
    with pytest.raises(ValueError, match=known):
        load_pretrained(build_backbone("resnet50_caffe"), "resnet50_caffe", "IMAGENET22K")


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("invalid hash value")])
def test_a_failed_download_names_the_address(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(ValueError, match=rf"{error}.*https://download\.pytorch\.org/models/resnet18-\w+\.pth"):
        load_pretrained(build_backbone("resnet18"), "resnet18", "IMAGENET1K_V1")
