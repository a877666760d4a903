# SPDX-License-Identifier: Apache-2.0
"""From a file with weights to tables, JSON, page and pictures; and networks that are scored while they train."""

from __future__ import annotations

import json
import os
import signal
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from panoptic_depth_model.config import PRESETS, segmentation_only
from panoptic_depth_model.deployable import Deployable
from panoptic_depth_model.panoptic_depth import Inference, PanopticDepth
from panoptic_depth_model.weights import digest, load_weights, save_weights
from panoptic_depth_ros.manifest import OUTPUTS, ModelError
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.frames import FrameFolder
from panoptic_depth_training.datasets.labeled import Supervision
from panoptic_depth_training.datasets.sources import parse_source
from panoptic_depth_training.evaluate.command import evaluation_of, main, parse_arguments, short_name, with_scores
from panoptic_depth_training.evaluate.drawing import compared
from panoptic_depth_training.evaluate.files import best_and_worst
from panoptic_depth_training.evaluate.network import evaluate, predicted_picture
from panoptic_depth_training.evaluate.scoring import Answer, FrameScore, Rules, ScoringSettings
from panoptic_depth_training.evaluate.tables import table
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.inference import evaluating
from panoptic_depth_training.torch_engine import TorchEngine, engine_for, open_model

FACTS = ModelFacts("compact", CITYSCAPES, 64, 96, 80.0)
ROAD, PERSON, CAR = (CITYSCAPES.names.index(name) for name in ("road", "person", "car"))
CONFIG = replace(PRESETS["compact"], width=16)


def network_of(config=CONFIG) -> PanopticDepth:
    torch.manual_seed(0)
    return PanopticDepth(config)


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "weights.pt"
    save_weights(path, network_of(), replace(FACTS, scores={"training": "none"}).to_dict())
    return path


def scores_in(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def test_the_engine_answers_as_the_exported_graph_would():
    network = network_of().eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = Deployable(network)(torch.from_numpy(images))
    outputs = engine_for(network, FACTS, "n").infer(images)
    assert tuple(outputs) == OUTPUTS
    for name, value in zip(OUTPUTS, expected, strict=True):
        np.testing.assert_array_equal(outputs[name], value.numpy())


def test_every_part_of_a_network_is_back_in_its_own_mode():
    network = network_of().train()
    network.backbone.freeze(1, norms=True)
    before = [module.training for module in network.modules()]
    assert len(set(before)) == 2
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    engine_for(network, FACTS, "n").infer(np.zeros((1, 64, 96, 3), np.uint8))
    predicted_picture(network, CITYSCAPES, torch.zeros(64, 96, 3, dtype=torch.uint8))
    assert [module.training for module in network.modules()] == before


def test_an_input_of_twice_the_size_sees_twice_the_focal_length(weights):
    engine = open_model(weights, size=(128, 192))
    assert isinstance(engine, TorchEngine)
    assert (engine.manifest.height, engine.manifest.width, engine.manifest.focal_length_px) == (128, 192, 160.0)
    assert engine.manifest.digest == digest(load_weights(weights)[0].state_dict())


def test_a_network_without_depth_says_so_of_every_category():
    manifest = engine_for(network_of(segmentation_only(CONFIG)), FACTS, "n").manifest
    assert not any(category.has_depth for category in manifest.taxonomy)
    assert manifest.taxonomy.names == CITYSCAPES.names


def test_a_depth_range_that_starts_at_zero_fits_into_a_manifest():
    released = replace(CONFIG, depth=replace(CONFIG.depth, min_m=0.0))
    assert engine_for(network_of(released), FACTS, "n").manifest.min_depth_m > 0


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut"])
def test_a_file_that_holds_no_weights_is_named(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.pt"):
        open_model(path)


def test_weights_do_not_run_on_engines_of_exported_models(weights):
    with pytest.raises(ModelError, match="export them first"):
        open_model(weights, "tensorrt")


def test_an_untrained_network_gets_a_row_for_every_score(frames):
    network = network_of().train()
    scores = evaluate(network, FACTS, f"synthetic:{frames}", 2)
    assert scores["images"] == 2
    assert {"miou", "pq", "pq_things", "pq_stuff", "abs_rel", "delta_1", "dpq", "iou_car"} <= set(scores)
    assert all(0 <= float(scores[name]) <= 1 for name in ("miou", "pq", "pq_things", "pq_stuff", "delta_1", "dpq"))
    assert network.training
    assert "miou" in table(scores)


def test_data_without_a_readable_image_is_an_error(broken_frames):
    with pytest.raises(ValueError, match=r"000002_panoptic\.png"):
        evaluate(network_of(), FACTS, f"synthetic:{broken_frames}@2:3", 5)


def test_the_scores_are_written_as_json_and_as_a_page_with_pictures(weights, frames, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "frames").mkdir(parents=True)  # somebody's own
    (out / "frames" / "000000.jpg").touch()
    (out / "scores_frames").mkdir()
    (out / "scores_frames" / "000099.jpg").touch()  # an earlier evaluation's
    assert main([str(weights), "--data", f"synthetic:{frames}", "--out", str(out), "--device", "cpu"]) == 0
    assert [path.name for path in (out / "frames").iterdir()] == ["000000.jpg"]
    assert not (out / "scores_frames" / "000099.jpg").exists()
    contents = scores_in(out)
    assert contents["complete"]
    assert contents["model"]["digest"] == digest(load_weights(weights)[0].state_dict())
    assert [frame["name"] for frame in contents["scores"]["frames"]] == [f"{index:06d}" for index in range(6)]
    flat = evaluate(load_weights(weights)[0], FACTS, f"synthetic:{frames}", 6)
    assert contents["scores"]["panoptic"]["all"]["pq"] == pytest.approx(flat["pq"], abs=1e-4)
    assert contents["scores"]["depth"]["overall"]["abs_rel"] == pytest.approx(flat["abs_rel"], abs=1e-4)
    document = xml.dom.minidom.parse(str(out / "scores.html"))
    pictures = [node.getAttribute("src") for node in document.getElementsByTagName("img")]
    assert sorted(pictures) == [f"scores_frames/{index:06d}.jpg" for index in range(6)]
    assert all(cv2.imread(str(out / picture)) is not None for picture in pictures)
    assert "panoptic quality" in capsys.readouterr().out


def test_a_report_that_could_not_be_written_is_refused_before_scoring(weights, frames, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.touch()
    assert main([str(weights), "--data", f"synthetic:{frames}", "--out", str(taken)]) == 1
    told = capsys.readouterr()
    assert "taken" in told.err
    assert "mIoU" not in told.out


def test_two_processes_give_the_scores_of_one(weights, frames, tmp_path):
    outs = [tmp_path / "one", tmp_path / "two"]
    for jobs, out in zip("12", outs, strict=True):
        assert main([str(weights), "--data", f"synthetic:{frames}", "--out", str(out), "--jobs", jobs]) == 0
    one, two = (scores_in(out)["scores"] for out in outs)
    assert len(one["frames"]) == len(two["frames"]) == 6
    for here, there in zip(one["frames"], two["frames"], strict=True):
        assert here["name"] == there["name"]
        for score in ("pq", "miou", "abs_rel"):  # threads may add in another order
            assert here[score] == pytest.approx(there[score], rel=1e-6)
    assert one["panoptic"] == two["panoptic"]
    assert one["depth"]["overall"] == pytest.approx(two["depth"]["overall"], rel=1e-6)


def test_an_unreadable_frame_is_named_and_the_exit_status_is_one(weights, broken_frames, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(weights), "--data", f"synthetic:{broken_frames}", "--out", str(out), "--record"]
    assert main(arguments) == 1
    contents = scores_in(out)
    assert not contents["complete"]
    assert contents["scores"]["images"] == 5
    assert len(contents["scores"]["images_not_scored"]) == 1
    assert "000002_panoptic.png" in contents["scores"]["images_not_scored"][0]
    assert "000002_panoptic.png" in capsys.readouterr().err
    assert load_weights(weights)[1]["scores"] == {"training": "none"}  # not recorded: an image is missing


def test_recorded_scores_replace_earlier_ones_and_join_what_the_weights_say(weights, frames):
    state = digest(load_weights(weights)[0].state_dict())
    data = f"synthetic:{frames}"
    earlier = {"training": "none", "pq": 0.9, "iou_train": 0.8}
    save_weights(weights, load_weights(weights)[0], replace(FACTS, scores=earlier).to_dict())
    assert main([str(weights), "--data", data, "--count", "2", "--record"]) == 0
    network, facts = load_weights(weights)
    assert digest(network.state_dict()) == state
    assert facts["scores"]["training"] == "none"
    assert facts["scores"]["scored_on"] == f"synthetic:{frames.name}"
    assert facts["scores"]["dpq_protocol"] == "occurring"
    assert facts["scores"]["evaluation"].endswith("--count 2 --record")
    assert "iou_train" not in facts["scores"]  # of another evaluation
    assert facts["scores"]["images"] == 2
    assert facts["scores"]["pq"] == evaluate(network, FACTS, data, 2)["pq"]


def test_scores_of_other_data_are_recorded_beside_the_main_ones(weights, frames):
    earlier = {
        "training": "none", "data": "of the training", "pq": 0.9, "val_pq": 0.8, "val_iou_train": 0.7,
        "val_scored_on": "before", "val_of_others_pq": 0.6, "other_pq": 0.5,
    }  # fmt: skip
    save_weights(weights, load_weights(weights)[0], replace(FACTS, scores=earlier).to_dict())
    assert main([str(weights), "--data", f"synthetic:{frames}", "--count", "1", "--record", "val"]) == 0
    named = load_weights(weights)[1]["scores"]
    stays = {name: earlier[name] for name in ("training", "data", "val_of_others_pq", "other_pq")}
    assert stays.items() | {("pq", 0.9)} <= named.items()
    assert named["val_images"] == 1
    assert named["val_pq"] != 0.8
    assert "val_iou_train" not in named  # of an earlier evaluation
    assert named["val_scored_on"] == f"synthetic:{frames.name}"
    assert named["val_evaluation"].endswith("--record val")
    assert with_scores(named, "", {"miou": 0.4}) == {k: v for k, v in named.items() if k != "pq"} | {"miou": 0.4}


@pytest.mark.parametrize("name", ["Val", "camvid-val", "weights.pt", "my_iou", "1st"])
def test_a_name_that_cannot_begin_the_names_of_scores_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["weights.pt", "--data", "synthetic:x", "--record", name])
    assert f"'{name}' is no name for scores" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("camvid:/home/me/data/camvid:val", "camvid:camvid:val"),
        ("recording:drives/today/@-5:", "recording:today@-5:"),
        ("synthetic:frames@2:4", "synthetic:frames@2:4"),
        ("streets:9:50:64x96", "streets:9:50:64x96"),
    ],
)
def test_data_is_recorded_without_the_folders_of_this_machine(text, name):
    assert short_name(parse_source(text)) == name


def test_an_interrupted_evaluation_keeps_what_was_scored_and_says_so(weights, frames, tmp_path, capsys, monkeypatch):
    infer, calls = TorchEngine.infer, []

    def interrupted(engine, images):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return infer(engine, images)

    monkeypatch.setattr(TorchEngine, "infer", interrupted)
    out = tmp_path / "out"
    assert main([str(weights), "--data", f"synthetic:{frames}", "--out", str(out), "--record"]) == 130
    contents = scores_in(out)
    assert not contents["complete"]
    assert contents["scores"]["images"] == 3  # the third was finished
    assert "INCOMPLETE: stopped after 3 of 6 images" in capsys.readouterr().out
    assert "INCOMPLETE" in (out / "scores.html").read_text()
    assert load_weights(weights)[1]["scores"] == {"training": "none"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "camvid:/nowhere:val"], "no such folder"),
        (["--data", "nothing:here"], "unknown data"),
        (["--size", "100x100"], "32"),
        (["--depth-cap", "-1"], "max_depth_m"),
        (["--depth-cap", "inf"], "max_depth_m"),
    ],
)
def test_what_cannot_be_scored_is_said_in_a_line(weights, frames, capsys, arguments, words):
    data = [] if "--data" in arguments else ["--data", f"synthetic:{frames}"]
    assert main([str(weights), *data, *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("evaluate: ")
    assert words in error


def test_data_with_a_video_score_of_its_own_gets_it_unasked():
    def windows(*arguments: str) -> tuple[int, ...]:
        return evaluation_of(parse_arguments(["m.onnx", *arguments])).settings.windows

    assert windows("--data", "cityscapes_dvps:x:val") == (1, 2, 3, 4)
    assert windows("--data", "semkitti_dvps:x:val") == (1, 5, 10, 20)
    assert windows("--data", "cityscapes_dvps:x:val", "--no-video") == ()
    assert windows("--data", "recording:x") == ()
    assert windows("--data", "recording:x", "--video") == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("name", "absent", "epsilon", "windows"),
    [
        ("vip_deeplab_cityscapes", "nan", 0, (1, 2, 3, 4)),
        ("panoptic_depth_cityscapes", "zero", 0, (1, 2, 3, 4)),
        ("vip_deeplab_semkitti", "nan", 1e-10, (1, 5, 10, 20)),
    ],
)
def test_a_published_protocol_is_had_by_its_name(name, absent, epsilon, windows):
    def settings(*arguments: str) -> ScoringSettings:
        return evaluation_of(parse_arguments(["m.onnx", "--protocol", name, *arguments])).settings

    video = settings("--data", "semkitti_dvps:x:val")
    assert (video.protocol.name, video.protocol.absent, video.protocol.epsilon) == (name, absent, epsilon)
    assert video.protocol.thresholds == (0.5, 0.25, 0.1)
    assert video.protocol.instance_zero == "segment"
    assert video.windows == windows
    assert settings("--data", "synthetic:x").windows == ()
    assert settings("--data", "synthetic:x", "--video").windows == windows


def test_without_a_protocol_categories_that_do_not_occur_are_left_out():
    for data in ("cityscapes_dvps:x:val", "semkitti_dvps:x:val", "synthetic:x"):
        protocol = evaluation_of(parse_arguments(["m.onnx", "--data", data])).settings.protocol
        assert (protocol.absent, protocol.epsilon, protocol.instance_zero) == ("left_out", 0, "void")


def test_scores_say_by_which_protocol_they_are(weights, frames, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--data", f"synthetic:{frames}", "--count", "2", "--out", str(out), "--median-scaling"]
    assert main([str(weights), *arguments, "--protocol", "panoptic_depth_cityscapes"]) == 0
    printed, contents = capsys.readouterr().out, scores_in(out)
    assert "DPQ (%), protocol panoptic_depth_cityscapes: " in printed
    assert "scaled by the median of the truth" in printed
    assert "protocol panoptic_depth_cityscapes" in (out / "scores.html").read_text()
    assert contents["settings"]["dpq_protocol"] == "panoptic_depth_cityscapes"
    assert contents["settings"]["things_without_instances"] == "a crowd in PQ, segment in DPQ"
    assert contents["settings"]["depth"]["median_scaling"] is True
    dpq = contents["scores"]["depth_panoptic"]
    assert dpq["protocol"] == "panoptic_depth_cityscapes"
    cells = [cell["categories"].values() for cell in dpq["at"] if cell["threshold"] > 0]
    means = [sum(category["pq"] for category in categories) / len(CITYSCAPES) for categories in cells]
    assert dpq["dpq"]["all"] == pytest.approx(sum(means) / 3)


def test_video_is_refused_where_the_truth_has_no_segments(weights, frames, capsys, monkeypatch):
    monkeypatch.setattr(FrameFolder, "supervision", Supervision(has_segments=False))
    assert main([str(weights), "--data", f"synthetic:{frames}", "--video"]) == 1
    assert "--video needs" in capsys.readouterr().err


def test_the_cap_ends_the_last_range_of_depth():
    settings = evaluation_of(parse_arguments(["m.onnx", "--data", "recording:x", "--depth-cap", "30"])).settings
    assert settings.depth.max_depth_m == 30
    assert settings.depth.range_edges_m == (0, 10, 20, 30)


def test_scores_cannot_be_recorded_in_an_exported_model(capsys):
    with pytest.raises(SystemExit):
        main(["model.onnx", "--data", "synthetic:frames", "--record"])
    assert "--record" in capsys.readouterr().err


def test_a_picture_shows_image_segments_and_depth_side_by_side():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    picture = predicted_picture(network_of(), CITYSCAPES, image)
    assert picture.shape == (64, 3 * 96, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[:, :96], image.numpy())
    without = predicted_picture(network_of(segmentation_only(CONFIG)), CITYSCAPES, image)
    assert not without[:, 192:].any()


class RoadAndTwoCars(PanopticDepth):
    """Sees on every image of 64x96, from left to right, a road, a car and another car; below them void."""

    def infer(self, image, size=None):
        labels = torch.zeros(1, 64, 96, dtype=torch.int64)
        labels[:, :32] = torch.tensor([4, 1, 3]).repeat_interleave(32)
        category, score = torch.tensor([[CAR, PERSON, CAR, ROAD]]), torch.tensor([[0.7, 0.0, 0.8, 0.9]])
        return Inference(labels, torch.full((1, 64, 96), 10.0), category, score)


def test_a_picture_has_the_colors_of_the_categories_with_another_shade_for_each_thing():
    picture = predicted_picture(RoadAndTwoCars(CONFIG), CITYSCAPES, torch.zeros(64, 96, 3, dtype=torch.uint8))
    road, car, other_car = (picture[16, 96 + column].astype(int) for column in (16, 48, 80))
    np.testing.assert_array_equal(road, CITYSCAPES[ROAD].color)
    for color in (car, other_car):
        red, green, blue = color - CITYSCAPES[CAR].color
        assert -30 <= blue <= 90
        assert 0 <= red == green <= 90
    assert (car != other_car).any()
    assert (picture[:31, 96 + 31] == 255).all()  # between two segments
    assert (np.ptp(picture[33:, 96:192], axis=-1) == 0).all()  # void has no color


def test_of_few_frames_each_is_shown_once():
    frames = [FrameScore(index, str(index), pq, None, None) for index, pq in enumerate((0.5, 0.1, 0.9, None, 0.3))]
    best, worst = best_and_worst(frames)
    assert [frame.index for frame in best] == [2, 0, 4]
    assert [frame.index for frame in worst] == [3, 1]
    best, worst = best_and_worst([replace(frame, index=k, pq=k / 20) for k in range(20) for frame in frames[:1]])
    assert [[frame.index for frame in part] for part in (best, worst)] == [[19, 18, 17, 16], [0, 1, 2, 3]]


def test_the_comparison_marks_the_pixels_that_are_wrong(frames):
    image = FrameFolder(frames)[0]
    rules = Rules(CITYSCAPES, FrameFolder.supervision, 80.0, ScoringSettings())
    ids = image.panoptic_ids.copy()
    ids[:, :48] = 0  # road on the left
    picture = compared(image, Answer(ids, image.depth), rules)
    width, height = 480, 320  # of a tile, below its title of 20 px
    assert picture.shape == (2 * (height + 20), 4 * width, 3)
    wrong = picture[20 : 20 + height, 3 * width :]
    is_red = (wrong[..., 0] > 150) & (wrong[..., 1] < 100)
    truth = cv2.resize((image.panoptic_ids // 1000).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    expected = (truth != 0) & (np.arange(width) < width // 2)
    assert (is_red == expected).mean() > 0.99
