# SPDX-License-Identifier: Apache-2.0
"""Take over the weights of the official PanopticDepth and PanopticFCN.

    python -m panoptic_depth_model.import_official CHECKPOINT.pth WEIGHTS.pt

Both are detectron2 checkpoints: PanopticDepth with depth (383 tensors), its segmentation-only stages (352, or 405
with batch norm counters) and PanopticFCN on COCO. Every tensor must find its place; otherwise nothing is written.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from panoptic_depth_model.config import (
    CITYSCAPES_THINGS,
    PRESETS,
    SOME_THING,
    Decisions,
    EmbeddingConfig,
    PanopticDepthConfig,
    segmentation_only,
)
from panoptic_depth_model.detectron2_files import ImportFailed, read_checkpoint
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.weights import save_weights

SHOWN = 10  # names in an error; the count is given with them

# Official name -> ours, tried in order.
RENAMES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.stem.1."),
        (r"backbone\.bottom_up\.stem\.conv1\.", "backbone.stem.0."),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.", r"backbone.stages.\1.\2.bn\3."),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.", r"backbone.stages.\1.\2.conv\3."),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.", r"backbone.stages.\1.\2.downsample.1."),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.", r"backbone.stages.\1.\2.downsample.0."),
        (r"backbone\.fpn_lateral(\d)\.", r"pyramid.laterals.\1."),
        (r"backbone\.fpn_output(\d)\.", r"pyramid.outputs.\1."),
        (r"backbone\.top_block\.", "pyramid."),
        (r"semantic_fpn\.p(\d)\.(\d)\.norm\.", r"semantic_pyramid.branches.\1.\2.1."),
        (r"semantic_fpn\.p(\d)\.(\d)\.", r"semantic_pyramid.branches.\1.\2.0."),
        (r"position_head\.position_head\.position_head_head_(\d)\.", r"location_head.tower.\1."),
        (r"position_head\.out_inst\.", "location_head.centers."),
        (r"position_head\.out_sem\.", "location_head.regions."),
        (r"kernel_head\.kernel_head\.kernel_head_head_(\d)\.", r"mask_kernel_head.tower.\1."),
        (r"kernel_head\.out_conv\.", "mask_kernel_head.kernels."),
        (r"depth_kernel_head\.depth_kernel_head\.depth_kernel_head_head_(\d)\.", r"depth_kernel_head.tower.\1."),
        (r"depth_kernel_head\.out_depth_kernel\.", "depth_kernel_head.kernels."),
        (r"feature_encoder\.encode_head\.encode_head_head_(\d)\.", r"embedding_head.mask.\1."),
        (r"depth_encode_head\.encode_head\.depth_encode_head_head_(\d)\.", r"embedding_head.depth_tower.\1."),
        (r"depth_encode_head\.embed_extractor\.", "embedding_head.depth."),
        (r"thing_generator\.embed_extractor\.", "embed_things."),
        (r"stuff_generator\.embed_extractor\.", "embed_stuff."),
    )
)
# Within a tower: block i holds the convolution (0) and its norm (1).
IN_TOWER = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"offset_mask_conv\.", "0.offsets."),
        (r"dcnv2\.norm\.", "1."),
        (r"dcnv2\.", "0."),
        (r"norm\.", "1."),
        (r"", "0."),
    )
)
FIRST_INDEX = {"stages": 2, "laterals": 2, "outputs": 2, "branches": 2, "tower": 1, "mask": 1, "depth_tower": 1}
COCO_THINGS, COCO_STUFF = 80, 53


def our_name(official: str) -> str | None:
    """Our name of a tensor; None for one that has no place in our network."""
    for pattern, ours in RENAMES:
        if match := pattern.match(official):
            return _counted_from_zero(match.expand(ours)) + _rest(match.expand(ours), official[match.end() :])
    return None


def _counted_from_zero(prefix: str) -> str:
    """Stages and levels are numbered from 2 there and layers from 1; upsampling takes no number of ours."""
    parts = prefix.split(".")
    for i, part in enumerate(parts[:-1]):
        if part in FIRST_INDEX and parts[i + 1].isdigit():
            parts[i + 1] = str(int(parts[i + 1]) - FIRST_INDEX[part])
    if parts[0] == "semantic_pyramid":
        # p2 is one block; the others are pairs of a block and an upsampling, of which there only the block counts.
        parts[3:4] = [] if parts[2] == "0" else [str(int(parts[3]) // 2), "0"]
    return ".".join(parts)


def _rest(prefix: str, rest: str) -> str:
    if not re.search(r"\.(tower|mask|depth_tower)\.\d\.$", prefix):
        return rest
    pattern, ours = next(rule for rule in IN_TOWER if rule[0].match(rest))
    return pattern.sub(ours, rest, count=1)


def config_of(state: Mapping[str, Tensor]) -> PanopticDepthConfig:
    """The network that an official checkpoint belongs to, from the shapes of its tensors."""
    needed = ("position_head.out_inst.bias", "position_head.out_sem.bias", "thing_generator.embed_extractor.bias")
    if absent := [name for name in needed if name not in state]:
        raise ImportFailed(
            f"not a PanopticDepth or PanopticFCN checkpoint: {', '.join(absent)} missing among {len(state)} tensors"
            + (f" ({', '.join(sorted(state)[:3])}, ...)" if state else "")
        )
    things, regions, width = (state[name].numel() for name in needed)
    has_depth = "depth_kernel_head.out_depth_kernel.bias" in state
    paper = PRESETS["paper"]
    if (things, regions) == (len(CITYSCAPES_THINGS), paper.num_categories):
        config = paper if has_depth else segmentation_only(paper)
    elif (things, regions) == (COCO_THINGS, 1 + COCO_STUFF) and not has_depth:
        config = panoptic_fcn(paper)
    else:
        raise ImportFailed(
            f"{things} thing centers and {regions} regions; expected 8 and 19 (PanopticDepth on Cityscapes) "
            f"or {COCO_THINGS} and {1 + COCO_STUFF} (PanopticFCN on COCO)"
        )
    deformable = any("feature_encoder" in name and "offset_mask_conv" in name for name in state)
    embedding = EmbeddingConfig(width, shared=False, deformable=deformable, norm=False)
    return replace(config, embedding=embedding)


def panoptic_fcn(paper: PanopticDepthConfig) -> PanopticDepthConfig:
    """PanopticFCN on COCO: no depth, kernels averaged over the map, one region for all things together."""
    return replace(
        segmentation_only(paper),
        num_categories=COCO_THINGS + COCO_STUFF,
        thing_ids=tuple(range(COCO_THINGS)),
        region_ids=(SOME_THING, *range(COCO_THINGS, COCO_THINGS + COCO_STUFF)),
        adaptive_fusion=False,
        decisions=Decisions(
            centers_per_level=50,
            min_center_score=0.05,
            min_region_score=0.05,
            min_mask_probability=0.4,
            min_similarity=0.9,
            min_stuff_area_px=4096,
            allow_void=True,
        ),
    )


def converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from an official one. Raises ImportFailed for a tensor without a place."""
    names = {official: our_name(official) for official in state}
    if unknown := sorted(official for official, ours in names.items() if ours is None):
        raise ImportFailed(f"{len(unknown)} tensors have no place in this network: {_listed(unknown)}")
    if double := sorted(official for official, ours in names.items() if list(names.values()).count(ours) > 1):
        raise ImportFailed(f"{len(double)} tensors share places: {_listed(double)}")
    ours = {str(name): state[official].float() for official, name in names.items()}
    for name in ("embed_things.weight", "embed_stuff.weight"):
        if name in ours:
            ours[name] = ours[name].flatten(1)  # a 1x1 convolution there
    if (stem := "backbone.stem.0.weight") in ours:
        ours[stem] = ours[stem].flip(1)  # the official network takes BGR; ours takes RGB
    return ours


def import_state(state: Mapping[str, Tensor]) -> PanopticDepth:
    """The network of an official checkpoint, in evaluation mode. Raises ImportFailed."""
    config = config_of(state)
    ours = converted({name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")})
    with torch.device("meta"):
        shaped = PanopticDepth(config).state_dict()
    expected = {name: t for name, t in shaped.items() if not name.endswith("num_batches_tracked")}
    missing, unexpected = sorted(expected.keys() - ours.keys()), sorted(ours.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(ours[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(ours.keys() & expected.keys())
        if ours[name].shape != expected[name].shape
    ]
    for what, names in (("missing", missing), ("left over", unexpected), ("of another shape", shapes)):
        if names:
            raise ImportFailed(f"{len(names)} tensors {what}: {_listed(names)}")
    network = PanopticDepth(config)
    network.load_state_dict(ours, strict=False)
    return network.eval()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="official .pth or .pkl file")
    parser.add_argument("weights", type=Path, help="file to write")
    options = parser.parse_args()
    try:
        state = read_checkpoint(options.checkpoint)
        network = import_state(state)
    except (ImportFailed, OSError) as error:
        sys.exit(f"import_official: {error}")
    if not options.weights.parent.is_dir():
        sys.exit(f"import_official: {options.weights.parent} is not a folder; create it first")
    config = network.config
    kind = "with depth" if config.depth else "segmentation only"
    facts = {"imported_from": options.checkpoint.name, "num_categories": config.num_categories}
    save_weights(options.weights, network, facts)
    print(
        f"{options.weights}: {len(state)} tensors, none left over; {config.num_categories} categories, "
        f"{len(config.thing_ids)} of them things, {kind}"
    )


if __name__ == "__main__":
    main()
