"""The classes of a run: labels that are numbers, the order that a run began with, and lists of names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import stvid
from stvid.classes import class_list
from stvid.config import TrainConfig, load_config
from stvid.errors import ManifestError
from stvid.models.base import VideoModel
from stvid.protocol import Protocol
from stvid.runs import claim_output, read_data, read_split, read_test_videos


@pytest.fixture(scope="module")
def video(make_video: Callable[..., Path]) -> Path:
    return make_video("run.mp4", frames=10)


def config_of(folder: Path, video: Path, labels: Sequence[object], *options: str) -> TrainConfig:
    rows = [f"{video},{label},{n / 100}\n" for n, label in enumerate(labels)]
    (folder / "list.csv").write_text("path,label,start\n" + "".join(rows))
    return load_config(None, [f"--data.train={folder / 'list.csv'}", *options])


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (range(11), [str(n) for n in range(11)], ""),
        ([3, 0, 1], ["0", "1", "2", "3"], "2 without videos"),
        ([10, 0, 2], ["0", "2", "10"], "label 2 is logit 1"),
        ([1, 2, 3], ["1", "2", "3"], "label 1 is logit 0"),
        (["run", "10"], ["10", "run"], ""),
    ],
)
def test_classes_that_are_numbers(
    labels: Sequence[object],
    names: list[str],
    said: str,
    video: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, _ = read_data(config_of(tmp_path, video, labels))
    assert list(train.class_names) == names
    assert [names[number] for number in train.primary] == [str(label) for label in labels]
    err = capsys.readouterr().err
    assert (said in err and len(err.splitlines()) == 1) if said else not err


def test_a_continued_run_keeps_the_order_that_it_began_with(video: Path, tmp_path: Path) -> None:
    older = ("0", "1", "10", "2")  # sorted as words
    config = config_of(tmp_path, video, [0, 1, 2, 10])
    config.protocol = config.protocol.replace(class_names=older)  # as `train` takes it from the checkpoint
    train, _ = read_data(config)
    assert train.class_names == older and train.primary.tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize(("labels", "older"), [([0, 1, 2, 10], ("0", "1", "10", "2")), ([0, 1, 3], ("0", "1", "3"))])
def test_weights_of_the_same_classes_keep_their_head(
    labels: list[int],
    older: tuple[str, ...],
    video: Path,
    tmp_path: Path,
    tiny_model: Callable[[Protocol], VideoModel],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stvid.save_model(tiny_model(Protocol(frames=4, crop=32, class_names=older)), tmp_path / "m.safetensors")
    config = config_of(tmp_path, video, labels, f"--init={tmp_path / 'm.safetensors'}")
    train, _ = read_data(config, initial=older)
    assert train.class_names == older and not capsys.readouterr().err


def test_names_of_a_packaged_list(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = read_data(config_of(tmp_path, video, [50, 0], "--data.class_names=hmdb51"))
    assert train.class_names == class_list("hmdb51") and train.primary.tolist() == [50, 0]
    err = capsys.readouterr().err
    assert "are numbers: they are the places of the class names" in err and len(err.splitlines()) == 1
    with pytest.raises(ManifestError, match="label '51' is not the number of one of the 51 classes"):
        read_data(config_of(tmp_path, video, [51, 0], "--data.class_names=hmdb51"))


def test_evaluate_takes_numbers_without_names(
    video: Path, tmp_path: Path, tiny_model: Callable[[Protocol], VideoModel]
) -> None:
    config = config_of(tmp_path, video, [2, 10])
    protocol = Protocol(frames=4, stride=2, short_side=40, crop=32)
    model = tiny_model(protocol.replace(class_names=[str(n) for n in range(12)]))
    model.default_protocol = protocol
    result = stvid.evaluate(model, str(config.data.train))
    assert result.labels.tolist() == [2, 10] and result.class_names == tuple(str(n) for n in range(12))
    ranks = (result.scores.argmax(1) == np.array([2, 10])).mean()
    assert result.metric("top1") == ranks


def test_a_column_of_the_list_names_the_splits(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, video, ["run", "sit"] * 6, "--data.val_fraction", "0.5")
    path = Path(str(config.data.train))
    splits = ["split", *["train"] * 8, *["val"] * 2, *["test"] * 2]
    path.write_text("\n".join(f"{line},{split}" for line, split in zip(path.read_text().split(), splits, strict=True)))
    train, val = read_data(config)
    assert (len(train), len(val or ())) == (8, 2)
    said = capsys.readouterr().err
    assert "data.train: " in said and "8 of 12 rows" in said and "data.val: " in said
    assert len(read_test_videos(config)) == 2 and "column split says test" in capsys.readouterr().err
    assert len(read_split(config, "train", whole=True)) == 12
    path.write_text(path.read_text().replace(",test", ",train"))
    assert len(read_test_videos(config)) == 2 and len(read_data(config)[0]) == 10


def test_held_out_videos_are_limited_in_validation_and_not_in_a_test(video: Path, tmp_path: Path) -> None:
    labels = ["run", "sit"] * 6
    config = config_of(tmp_path, video, labels, "--data.val_fraction", "0.5", "--data.limit_val", "2")
    train, val = read_data(config)
    assert (len(train), len(val or ())) == (6, 2)
    assert len(read_test_videos(config)) == 6


def test_a_failed_start_leaves_no_folder(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(tmp_path, video, ["run", "sit"])
    for _ in range(2):
        with pytest.raises(ManifestError, match="mistake"), claim_output(config, "x") as folder:
            assert folder == Path("runs/x") and (folder / ".lock").exists()
            raise ManifestError("a mistake in the list")
        assert not folder.exists()
    with pytest.raises(ManifestError, match="mistake"), claim_output(config, "x") as folder:
        (folder / "metrics.csv").touch()
        raise ManifestError("a mistake in the list")
    assert (folder / "metrics.csv").exists()
    own = tmp_path / "own"
    own.mkdir()
    config.output = str(own)
    with claim_output(config, "x"):
        pass
    assert own.is_dir()  # it was there before


def test_groups_are_held_out_whole(video: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, video, ["run", "sit"] * 12, "--data.val_fraction", "0.25")
    path = Path(str(config.data.train))
    people = ["group", *[f"p{number // 4}" for number in range(23)], ""]
    path.write_text("\n".join(f"{line},{who}" for line, who in zip(path.read_text().split(), people, strict=True)))
    train, val = read_data(config)
    assert val is not None and train.groups is not None and val.groups is not None
    assert 4 <= len(val) <= 6 and len(train) + len(val) == 24
    assert not {*train.groups.tolist()} & {*val.groups.tolist()}
    assert [entry.start for entry in read_test_videos(config)] == [entry.start for entry in val]
    # A class that one group alone shows is not held out: nothing would be left to train it.
    path.write_text(f"path,label,start,group\n{video},run,0,a\n{video},run,1,a\n{video},sit,2,b\n{video},sit,3,b\n")
    assert read_data(config)[1] is None
