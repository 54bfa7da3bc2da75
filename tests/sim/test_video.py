import sys

import imageio.v3 as imageio
import numpy as np
import pytest

from sim.video import VideoUnavailableError, write_video


def test_videos_are_the_right_way_up_with_a_caption(tmp_path):
    frame = np.zeros((256, 256, 3), np.uint8)
    frame[:64, :64] = 255  # upper left corner as the simulator gives it: lower right of the scene
    path = tmp_path / "folder" / "x.mp4"
    write_video(path, [frame] * 3, "pick up the milk: solved after 3 steps")
    film = imageio.imread(path)
    assert film.shape[1:] == (304, 256, 3)
    assert film[0, 200:250, 200:250].mean() > 200
    assert film[0, :64, :64].mean() < 50
    assert film[0, 256:].max() > 150  # something is written


def test_no_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "x.mp4", [], "")


def test_a_missing_encoder_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(VideoUnavailableError, match="pip install"):
        write_video(tmp_path / "x.mp4", [np.zeros((256, 256, 3), np.uint8)], "")
